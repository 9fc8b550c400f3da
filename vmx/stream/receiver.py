"""The destination's side of a stream: waits for the source, places what arrives, acknowledges whole iterations.

    listen ──> accept ──> page threads 1..N: receive, open, place ... SYNC
                              │ all N have said SYNC             │ one failed
                              v                                  v
                          SYNC_ACK on control              FAILED on control, all channels end

A SYNC_ACK is sent only when every page of the iteration lies in guest RAM. Disks have channels and threads of their own
(disk_receiver.py). Whatever a thread finds wrong ends the stream: it is told to the source, and raised by the owner's
next `receive`.
"""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from vmx.disk.contract import DiskSink
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES
from vmx.stream import frames
from vmx.stream.connection import PageReceiver
from vmx.stream.control import ControlChannel, ControlHooks, DisksReceived, Received
from vmx.stream.disk_receiver import DestinationDisks, check_sinks
from vmx.stream.errors import (
    ConnectionLost,
    DiskPlacementFailed,
    DisksMismatch,
    LayoutMismatch,
    LimitExceeded,
    PeerClosed,
    ProtocolViolation,
    SpecInvalid,
    StreamAborted,
    StreamError,
)
from vmx.stream.frames import ControlCode, ControlMessage, FrameHeader, FrameType
from vmx.stream.placement import ChannelPlacer, GuestPlaces
from vmx.stream.rendezvous import ChannelListener, OpenedChannel
from vmx.stream.spec import ChannelRole, ReceiverSpec
from vmx.stream.verify import DigestTable

# A source that gives up drops its page channels and says why on the control channel: how long that word may take.
_EXPLANATION_S: Final = 0.5
_NO_SINKS: Final[Mapping[int, DiskSink]] = MappingProxyType({})


@dataclass(frozen=True)
class ReceiveProgress:
    """Totals since the stream began; `wire_bytes` counts what the page channels took from TCP, `disk_wire_bytes` what
    the disk and mirror channels did."""

    pages: int
    zero_pages: int
    wire_bytes: int
    disk_bytes: int = 0
    mirrored_bytes: int = 0
    disk_wire_bytes: int = 0


class _Barrier:
    """Counts the channels that have finished an iteration, and adds up what they carried."""

    def __init__(self, channel_count: int, page_count: int) -> None:
        self._channel_count = channel_count
        self._page_count = page_count
        self._lock = threading.Lock()
        self._arrived: set[int] = set()
        self._iteration = -1
        self._data_pages = 0
        self._zero_pages = 0

    def check_may_send(self, channel_index: int) -> None:
        """:raises ProtocolViolation: the channel goes on before the iteration that it finished was acknowledged."""
        if channel_index in self._arrived:
            raise ProtocolViolation(f"Channel {channel_index} goes on before its iteration was acknowledged.")

    def arrive(self, channel_index: int, sync: FrameHeader) -> FrameHeader | None:
        """Note a channel's SYNC.

        :returns: the ack to send where this was the last channel, else None.
        :raises ProtocolViolation: the channels are not in the same iteration, or it goes backwards.
        """
        with self._lock:
            if not self._arrived:
                if sync.iteration <= self._iteration:
                    raise ProtocolViolation(f"Iteration {sync.iteration} comes after {self._iteration}.")
                self._iteration, self._data_pages, self._zero_pages = sync.iteration, 0, 0
            elif sync.iteration != self._iteration:
                raise ProtocolViolation(f"Iteration {sync.iteration} ends within {self._iteration}.")
            self._data_pages += sync.first
            self._zero_pages += sync.total
            if self._data_pages + self._zero_pages > self._page_count:
                raise LimitExceeded(
                    "pages of an iteration", self._data_pages + self._zero_pages, self._page_count
                )
            self._arrived.add(channel_index)
            if len(self._arrived) < self._channel_count:
                return None
            self._arrived.clear()
            return FrameHeader(
                FrameType.SYNC_ACK, iteration=sync.iteration, first=self._data_pages, total=self._zero_pages
            )


class _PageThread:
    """One page channel, its thread and its counters."""

    def __init__(self, channel: PageReceiver, places: GuestPlaces, owner: "DestinationStreams") -> None:
        self.channel = channel
        self.data_pages = 0
        self.zero_pages = 0
        self._placer = ChannelPlacer(places, channel)
        self._owner = owner
        self._iteration: int | None = None  # the one under way; None between two
        self._iteration_data = 0
        self._iteration_zero = 0
        self.thread = threading.Thread(target=self._run, name=f"stream-receive-{channel.index}", daemon=True)

    def _run(self) -> None:
        try:
            self._receive_all()
        except Exception as error:  # noqa: BLE001  the thread's outer edge: told to the owner and to the source
            # The frames that raised still hold views of guest RAM, which could then not be unmapped.
            traceback.clear_frames(error.__traceback__)
            self._owner.fail_from_thread(error)

    def _receive_all(self) -> None:
        while True:
            try:
                header = self.channel.receive_header()
            except PeerClosed:
                header = None
                if self._iteration is not None:
                    raise
            if header is None:
                if self._iteration is not None:
                    raise PeerClosed(self.channel.index, f"within iteration {self._iteration}")
                return  # between two iterations nothing is lost; the control channel says what it means
            self._owner.barrier.check_may_send(self.channel.index)
            self._handle(header)

    def _handle(self, header: FrameHeader) -> None:
        if self._iteration is None:
            self._iteration, self._iteration_data, self._iteration_zero = header.iteration, 0, 0
        if header.iteration != self._iteration:
            raise ProtocolViolation(f"Iteration {header.iteration} begins within {self._iteration}.")
        if header.type is FrameType.PAGES:
            self._placer.place_pages(header)
            self.data_pages += header.total
            self._iteration_data += header.total
        elif header.type is FrameType.ZERO:
            self._placer.place_zero(header)
            self.zero_pages += header.total
            self._iteration_zero += header.total
        else:
            if (header.first, header.total) != (self._iteration_data, self._iteration_zero):
                raise ProtocolViolation(
                    f"SYNC counts {header.first} data and {header.total} zero pages, "
                    f"{self._iteration_data} and {self._iteration_zero} came."
                )
            self._iteration = None
            self._owner.iteration_done(self.channel.index, header)


class DestinationStreams:
    """All channels of one migration at its destination. Made by `listen`, ended by `close`.

    Where there is no memory to receive (a powered-off VM), `memory` is None and the spec's `channel_count` 0.

    The guest's memory must be as the source's was when it began: empty (`GuestMemory.clear`) once its QEMU is up, and
    written by nobody else until the stream is closed. Everything here is for the loop, except `progress`.
    """

    def __init__(
        self,
        spec: ReceiverSpec,
        memory: GuestMemory | None,
        listener: ChannelListener,
        disk_sinks: Mapping[int, DiskSink] = _NO_SINKS,
    ) -> None:
        """Take over a bound listener; use `listen`."""
        self._spec = spec
        self._page_count = memory.page_count if memory is not None else 0
        self._sinks = disk_sinks
        self._disks: DestinationDisks | None = None
        self._memory = memory
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._mapping = contextlib.ExitStack()
        self._failure: dict[str, Exception] = {}
        self._places: GuestPlaces | None = None
        self._control: ControlChannel | None = None
        self._pages: list[_PageThread] = []
        self._announcing: asyncio.Task[None] | None = None
        self.barrier = _Barrier(spec.channel_count, self._page_count)

    @classmethod
    def listen(
        cls,
        spec: ReceiverSpec,
        memory: GuestMemory | None,
        disk_sinks: Mapping[int, DiskSink] = _NO_SINKS,
    ) -> "DestinationStreams":
        """Bind the first free vMotion port from 8000 up; connections wait there until `accept`.

        `disk_sinks` has a sink for each of the spec's disks, by key. They stay the caller's: closed after `close`.

        :raises SpecInvalid: the specification makes no sense, or memory and sinks are not those that it speaks of.
        :raises ListenFailed: no port can be had.
        """
        spec.check()
        if (memory is not None) != (spec.channel_count > 0):
            raise SpecInvalid("channel_count", "doesn't fit a stream with or without memory")
        check_sinks(spec, disk_sinks)
        return cls(spec, memory, ChannelListener.bind(spec), disk_sinks)

    @property
    def address(self) -> str:
        """The vMotion address listened on."""
        return self._spec.listen_address

    @property
    def port(self) -> int:
        """The port to tell the source. Valid until `accept` returns."""
        return self._listener.port

    @property
    def control(self) -> ControlChannel:
        """The control channel, to send on.

        :raises StreamAborted: not accepted yet.
        """
        if self._control is None:
            raise StreamAborted("the source has not connected yet")
        return self._control

    @property
    def digests(self) -> DigestTable | None:
        """The live digest table where the spec asked for one: complete after the last iteration's ack."""
        return self._places.digests if self._places is not None else None

    def progress(self) -> ReceiveProgress:
        """Totals so far, from any thread, without a lock."""
        zero = sum(page.zero_pages for page in self._pages)
        data = sum(page.data_pages for page in self._pages)
        page_wire_bytes = sum(page.channel.wire_bytes for page in self._pages)
        disks = self._disks
        if disks is None:
            return ReceiveProgress(data + zero, zero, page_wire_bytes)
        mirrored_bytes = disks.mirror.mirrored_bytes
        return ReceiveProgress(
            data + zero, zero, page_wire_bytes, disks.bulk_bytes, mirrored_bytes, disks.wire_bytes
        )

    @property
    def disks_final(self) -> bool:
        """The source has handed its disks over: all of it is written and flushed. READY can't be said before.
        True where there are no disks."""
        return not self._spec.disks or (self._disks is not None and self._disks.final)

    async def accept(self, deadline_s: float) -> None:
        """Wait for the source's channels, agree on the memory's layout and the disks, begin to place what comes.

        :raises ChannelsMissing: the source did not come in time.
        :raises LayoutMismatch: its guest has another size; it was told so.
        :raises DisksMismatch: it has other disks; it was told so.
        :raises StreamError: the control channel failed at once.
        :raises GuestMemoryError: guest RAM can't be mapped. In every case call `close` next.
        """
        channels = await self._listener.accept_all(deadline_s)
        hooks = ControlHooks(
            self._unexpected_ack, lambda _message: None, self._on_control_lost, self._check_message
        )
        timeouts, expects_disks = self._spec.timeouts, bool(self._spec.disks)
        self._control = ControlChannel(
            channels[0], self._page_count, False, timeouts, hooks, expects_disks=expects_disks
        )
        self._control.start()
        agreed = False
        try:
            await self._check_layout(self._control, await self._control.receive(timeouts.handshake_s))
            if expects_disks:
                await self._check_disks(self._control, await self._control.receive(timeouts.handshake_s))
            if self._memory is not None:
                mapped = self._mapping.enter_context(self._memory.mapped())
                self._places = await asyncio.to_thread(
                    GuestPlaces, self._memory, mapped, self._spec.keep_digests
                )
            agreed = True
        finally:
            if not agreed:
                for opened in channels[1:]:
                    opened.sock.close()
        self._start_threads(channels)

    def _start_threads(self, channels: list[OpenedChannel]) -> None:
        """No waiting in here: from the first thread on, `close` has to find them all."""
        silent_s, role = self._spec.timeouts.silent_peer_s, self._spec.channels.role
        if self._places is not None:
            self._pages = [
                _PageThread(PageReceiver(opened, self._page_count, silent_s), self._places, self)
                for opened in channels
                if role(opened.index) is ChannelRole.PAGES
            ]
        for page in self._pages:
            page.thread.start()
        if self._spec.disks:
            self._disks = DestinationDisks(self._spec, self._sinks, channels, self)
        if "first" in self._failure:  # a page thread, or control, was faster than the disks
            self._shut_down_channels()

    async def _check_layout(self, control: ControlChannel, layout: Received) -> None:
        if not isinstance(layout, ControlMessage) or layout.code is not ControlCode.LAYOUT:
            raise ProtocolViolation("The control channel does not begin with the memory's layout.")
        ram_bytes = self._page_count * PAGE_BYTES
        if layout.value != ram_bytes:
            mismatch = LayoutMismatch(layout.value, ram_bytes)
            await control.send(ControlMessage(ControlCode.FAILED, text=str(mismatch)))
            raise mismatch

    async def _check_disks(self, control: ControlChannel, received: Received) -> None:
        if not isinstance(received, DisksReceived):
            raise ProtocolViolation("The memory's layout is not followed by the disks.")
        if received.disks != self._spec.disks:
            peer, own = (
                {disk.key: disk.capacity_bytes for disk in disks}
                for disks in (received.disks, self._spec.disks)
            )
            mismatch = DisksMismatch(peer, own)
            await control.send(ControlMessage(ControlCode.FAILED, text=str(mismatch)))
            raise mismatch

    async def receive(self, timeout_s: float) -> Received:
        """The source's next control message; page data is placed meanwhile, unseen.

        :raises PeerSilent: no message within `timeout_s` (page data may well have come).
        :raises StreamError: the stream failed: the first cause, whichever channel it was found on.
        """
        try:
            return await self.control.receive(timeout_s)
        except StreamError:
            first = self._failure.get("first")
            if first is None:
                raise
            raise first from first.__cause__

    async def close(self) -> None:
        """End all threads and connections and unmap guest RAM. Idempotent.

        :raises MemoryStillViewedError: somebody else holds a view of the mapping.
        """
        self._listener.close()
        self._fail(StreamAborted("the stream was closed"))
        await asyncio.to_thread(self._join)
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
        if self._control is not None:
            await self._control.close()
        self._mapping.close()

    # ---- called by page and disk threads

    def iteration_done(self, channel_index: int, sync: FrameHeader) -> None:
        """A page thread has placed everything up to this SYNC; the last of them acknowledges.

        :raises StreamError: the counts don't fit, or the ack can't be sent.
        """
        ack = self.barrier.arrive(channel_index, sync)
        if ack is not None:
            self.acknowledge(ack)

    def acknowledge(self, ack: FrameHeader) -> None:
        """Send an ack on the control channel.

        :raises StreamError: it can't be sent.
        """
        self.control.send_from_thread(ack)

    def fail_from_thread(self, error: Exception) -> None:
        """A thread of a data channel ended with `error`."""
        if self._fail(error):
            self._loop.call_soon_threadsafe(self._begin_announcing, error)

    # ---- failure

    def _fail(self, error: Exception) -> bool:
        """Keep the first error and end the data channels; whether it was the first."""
        if self._failure.setdefault("first", error) is not error:
            return False
        self._shut_down_channels()
        return True

    def _shut_down_channels(self) -> None:
        for page in self._pages:
            page.channel.shut_down()
        if self._disks is not None:
            self._disks.shut_down()

    def _begin_announcing(self, error: Exception) -> None:
        self._announcing = asyncio.create_task(self._announce(error), name="stream-announce-failure")

    async def _announce(self, error: Exception) -> None:
        """Tell the source, best effort; then end the control channel, so that the owner hears too."""
        value = 0
        if isinstance(error, DiskPlacementFailed):
            value = frames.failed_value(error.key, error.code)
        with contextlib.suppress(StreamError):  # the source is gone: the first error is what counts
            await self.control.send(ControlMessage(ControlCode.FAILED, value, str(error)))
        end = StreamAborted(f"a data channel failed: {error}")
        if isinstance(error, ConnectionLost):
            self._loop.call_later(_EXPLANATION_S, self.control.fail, end)
        else:
            self.control.fail(end)

    def _on_control_lost(self, error: StreamError) -> None:
        self._fail(error)

    def _check_message(self, message: ControlMessage) -> None:
        if message.code is ControlCode.READY and not self.disks_final:
            raise ProtocolViolation("READY can't be said before the source has handed its disks over.")

    @staticmethod
    def _unexpected_ack(_header: FrameHeader) -> None:
        raise ProtocolViolation("A SYNC_ACK came from the source.")  # never: not among the types it may send

    def _join(self) -> None:
        for page in self._pages:
            if page.thread.is_alive():
                page.thread.join()
            page.channel.close()
        if self._disks is not None:
            self._disks.join()

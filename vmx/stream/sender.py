"""The source's side of a stream: sends sets of guest pages and returns when the destination has placed them all.

Where disks move too, disk_sender.py and mirror_sender.py have their channels.

Each page channel has a thread. An iteration is cut into frames (plan.py); the threads take frame after frame until
none is left, so a slow channel never holds up a fast one; then each says SYNC, and the destination acknowledges when
all have arrived.

    send_iteration ──> worker 1..N: look for zero pages, seal, send ... SYNC ──TCP──> receiver
          ^                      │ done / failed                                       │
          └────── mailbox <──────┴──────────── SYNC_ACK or FAILED <──control channel───┘
"""

import asyncio
import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmx.guest.memory import MappedMemory
from vmx.guest.pages import (
    PAGE_BYTES,
    PageRuns,
    page_indexes,
    page_total,
    runs_from_bounds,
    runs_from_indexes,
    validate,
)
from vmx.stream import frames
from vmx.stream.bandwidth import BandwidthCap
from vmx.stream.connection import PageSender
from vmx.stream.control import ControlChannel, ControlHooks
from vmx.stream.disk_sender import RemoteDisk, SourceDisks
from vmx.stream.errors import (
    ConnectionLost,
    PeerSilent,
    ProtocolViolation,
    RemoteDiskFailed,
    RemoteFailure,
    StreamAborted,
    StreamError,
)
from vmx.stream.frames import ControlCode, ControlMessage, FrameHeader, FrameType
from vmx.stream.plan import FramePlan
from vmx.stream.rendezvous import OpenedChannel, open_channel
from vmx.stream.spec import ChannelRole, StreamSpec
from vmx.threads import in_thread

# A receiver that fails drops its page channels and says why on the control channel: how long that word may take.
_EXPLANATION_S: Final = 0.5
_ZERO_FLUSH_ROWS: Final = 1024
_WORDS: Final = PAGE_BYTES // 8
_ZEROS: Final = memoryview(bytes(frames.MAX_FRAME_PAGES * PAGE_BYTES))


@dataclass(frozen=True)
class IterationSent:
    """What one iteration moved. `pages` counts all pages, `zero_pages` those among them that went as a mere number."""

    iteration: int
    pages: int
    zero_pages: int
    ram_bytes: int
    wire_bytes: int
    duration_ms: float


@dataclass(frozen=True)
class SendProgress:
    """Totals since the stream began; `wire_bytes` counts what the page channels gave to TCP, `disk_wire_bytes` what the
    disk and mirror channels did. `disk_bytes` is bulk data, `mirrored_bytes` what the destination has acknowledged."""

    pages: int
    zero_pages: int
    wire_bytes: int
    disk_bytes: int = 0
    mirrored_bytes: int = 0
    disk_wire_bytes: int = 0


def zero_mask(pages: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Which rows of `pages` (shape (n, 4096)) are all zeros; None where none is.

    A page with a first or last word that isn't zero (nearly every one in use) costs two cache lines, not a read.
    """
    words = pages.view(np.uint64)
    candidates = np.flatnonzero((words[:, 0] | words[:, _WORDS - 1]) == 0)
    if not candidates.size:
        return None
    chosen = words if candidates.size == len(words) else words[candidates]
    mask = np.zeros(len(words), dtype=np.bool_)
    mask[candidates] = np.bitwise_or.reduce(chosen, axis=1) == 0
    return mask if mask.any() else None


# Told which bytes went as the pages from a first page on; called by several page threads, for different pages.
RecordSent = Callable[[int, memoryview], None]


class _Iteration:
    """One iteration's work, shared by the workers."""

    def __init__(
        self, number: int, runs: PageRuns, memory: MappedMemory, record_sent: RecordSent | None = None
    ) -> None:
        self.number = number
        self.memory = memory
        self.record_sent = record_sent
        self.plan = FramePlan(runs)
        # next() on it is one step under the interpreter's lock: no two workers get the same frame.
        self._next = itertools.count()

    def claim(self) -> PageRuns | None:
        number = next(self._next)
        return self.plan.runs(number) if number < len(self.plan) else None


class _Worker:
    """One page channel and its thread."""

    def __init__(self, channel: PageSender, spec: StreamSpec, cap: BandwidthCap, mailbox: "_Mailbox") -> None:
        self.channel = channel
        self.data_pages = 0
        self.zero_pages = 0
        self.wire_bytes = 0
        self.jobs: queue.SimpleQueue[_Iteration | None] = queue.SimpleQueue()
        self._detect_zero_pages = spec.detect_zero_pages
        self._cap = cap
        self._mailbox = mailbox
        self._body = np.empty(frames.MAX_PAGES_BODY_BYTES, dtype=np.uint8)
        self._zero_rows: list[PageRuns] = []
        self.thread = threading.Thread(target=self._run, name=f"stream-send-{channel.index}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                self._work(job)
            except Exception as error:  # noqa: BLE001  the thread's outer edge: told to whoever waits for the iteration
                # The frames that raised still hold views of guest RAM, which could then not be unmapped.
                traceback.clear_frames(error.__traceback__)
                self._mailbox.put(error)
                return
            finally:
                del job
            self._mailbox.put(self)

    def _work(self, job: _Iteration) -> None:
        data_before, zero_before = self.data_pages, self.zero_pages
        self._zero_rows.clear()
        while (runs := job.claim()) is not None:
            self._send_runs(job, runs)
            if len(self._zero_rows) >= _ZERO_FLUSH_ROWS:
                self._flush_zero(job)
        self._flush_zero(job)
        data, zero = self.data_pages - data_before, self.zero_pages - zero_before
        self._send(FrameHeader(FrameType.SYNC, iteration=job.number, first=data, total=zero))

    def _send_runs(self, job: _Iteration, runs: PageRuns) -> None:
        body, pages = self._body_of(job, runs)
        zero = zero_mask(pages) if self._detect_zero_pages else None
        if zero is not None:
            indexes = page_indexes(runs)
            zero_runs = runs_from_indexes(indexes[zero])
            self._zero_rows.append(zero_runs)
            if job.record_sent is not None:
                _record(job.record_sent, zero_runs, _ZEROS)
            if zero.all():
                return
            runs = runs_from_indexes(indexes[~zero])
            body, pages = self._body_of(job, runs)
        if job.record_sent is not None:
            _record(job.record_sent, runs, body[len(body) - page_total(runs) * PAGE_BYTES :])
        self._send(frames.runs_header(FrameType.PAGES, job.number, runs), body)
        self.data_pages += len(pages)

    def _body_of(self, job: _Iteration, runs: PageRuns) -> tuple[memoryview, NDArray[np.uint8]]:
        """The frame's body and the pages in it: one run is guest RAM itself, more are gathered behind their table.

        Where it has to be known what was sent, one run is copied too: guest RAM may change between two looks at it.
        """
        if len(runs) == 1 and job.record_sent is not None:
            first, count = runs[0].tolist()
            copy = self._body[: count * PAGE_BYTES].reshape(-1, PAGE_BYTES)
            copy[:] = job.memory.pages[first : first + count]
            return self._body.data[: count * PAGE_BYTES], copy
        if len(runs) == 1:
            first, end = int(runs[0, 0]), int(runs[0, 0] + runs[0, 1])
            return job.memory.view[first * PAGE_BYTES : end * PAGE_BYTES], job.memory.pages[first:end]
        indexes = page_indexes(runs)
        table = np.frombuffer(frames.encode_runs(runs), dtype=np.uint8)
        end = len(table) + len(indexes) * PAGE_BYTES
        self._body[: len(table)] = table
        pages = self._body[len(table) : end].reshape(-1, PAGE_BYTES)
        # "clip" only spares numpy a private buffer: the runs were checked against the guest before.
        np.take(job.memory.pages, indexes, axis=0, out=pages, mode="clip")
        return self._body.data[:end], pages

    def _flush_zero(self, job: _Iteration) -> None:
        if not self._zero_rows:
            return
        rows = np.concatenate(self._zero_rows)
        self._zero_rows.clear()
        joined = runs_from_bounds(rows[:, 0], rows[:, 0] + rows[:, 1])
        for at in range(0, len(joined), frames.MAX_ZERO_RUNS):
            part = joined[at : at + frames.MAX_ZERO_RUNS]
            header = frames.runs_header(FrameType.ZERO, job.number, part)
            self._send(header, memoryview(frames.encode_runs(part)) if len(part) > 1 else None)
            self.zero_pages += header.total

    def _send(self, header: FrameHeader, body: memoryview | None = None) -> None:
        wire_bytes = self.channel.wire_bytes(header)
        self._cap.take(wire_bytes)
        self.channel.send_frame(header, body)
        self.wire_bytes += wire_bytes


def _record(record_sent: RecordSent, runs: PageRuns, data: memoryview) -> None:
    """Tell `record_sent` of each run; `data` holds their pages one after the other, or only zeros."""
    at = 0
    for first, count in runs.tolist():
        size = count * PAGE_BYTES
        record_sent(first, data[:size] if data is _ZEROS else data[at : at + size])
        at += size


# What may be in the mailbox: a worker that is done, the destination's ack, or what went wrong.
_Mailbox = queue.SimpleQueue["_Worker | FrameHeader | Exception"]


class SourceStreams:
    """All channels of one migration at its source. Made by `connect`, ended by `close`.

    `send_iteration` blocks and is for a thread, and so are the calls of `disks`; `control` and `finish_disks` are for
    the loop; `abort` and `progress` are for anybody.
    """

    def __init__(self, spec: StreamSpec, channels: list[OpenedChannel]) -> None:
        """Take over opened channels; use `connect`."""
        self._spec = spec
        self._page_count = spec.ram_bytes // PAGE_BYTES
        self._mailbox: _Mailbox = queue.SimpleQueue()
        self._failure: dict[str, Exception] = {}
        self._last_iteration = -1
        self._cap = BandwidthCap(spec.bandwidth_bytes_per_s)
        silent_s = spec.timeouts.silent_peer_s
        hooks = ControlHooks(
            self._on_ack, self._on_remote_failure, self._on_control_lost, self._check_message
        )
        self.control = ControlChannel(channels[0], self._page_count, True, spec.timeouts, hooks)
        self._workers = [
            _Worker(PageSender(opened, silent_s), spec, self._cap, self._mailbox)
            for opened in channels
            if spec.channels.role(opened.index) is ChannelRole.PAGES
        ]
        self._disks = SourceDisks(spec, channels, self._cap, self._fail) if spec.disks else None

    @classmethod
    async def connect(cls, spec: StreamSpec) -> "SourceStreams":
        """Open all channels to the waiting destination and tell it the memory's layout and the disks.

        :raises SpecInvalid: the specification makes no sense.
        :raises ConnectFailed: the destination can't be reached.
        :raises HandshakeError: it is not our destination, or refused us. In every case nothing stays open.
        """
        spec.check()
        opening = [asyncio.ensure_future(open_channel(spec, index)) for index in range(spec.channels.total)]
        try:
            channels = await asyncio.gather(*opening)
        except BaseException:
            for task in opening:
                task.cancel()
            for outcome in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(outcome, OpenedChannel):
                    outcome.sock.close()
            raise
        streams = cls(spec, list(channels))
        streams.control.start()
        try:
            await streams.control.send(ControlMessage(ControlCode.LAYOUT, spec.ram_bytes))
            if spec.disks:
                await streams.control.send_disks(spec.disks)
        except BaseException:
            await streams.close()
            raise
        return streams

    def progress(self) -> SendProgress:
        """Totals so far; exact to the frame, from any thread, without a lock."""
        workers = self._workers
        zero = sum(worker.zero_pages for worker in workers)
        data = sum(worker.data_pages for worker in workers)
        page_wire_bytes = sum(worker.wire_bytes for worker in workers)
        if self._disks is None:
            return SendProgress(data + zero, zero, page_wire_bytes)
        disks = self._disks
        return SendProgress(
            data + zero,
            zero,
            page_wire_bytes,
            disks.bulk_bytes,
            disks.mirror.mirrored_bytes,
            disks.wire_bytes,
        )

    @property
    def disks(self) -> Mapping[int, RemoteDisk]:
        """The disks at the destination by key: where the bulk copy and the mirror write to."""
        return {} if self._disks is None else self._disks.remote

    @property
    def failure(self) -> Exception | None:
        """What ended the stream's data channels first, or None while nothing has: the cause behind a disk's error."""
        return self._failure.get("first")

    async def finish_disks(self, final: bool = False) -> None:
        """Wait until all bulk data sent so far is written and flushed at the destination. Writers wait meanwhile.

        With `final`, after the guest's stop and the end of its mirror: every mirrored write is acknowledged and flushed
        too, nothing may follow, and only then the destination may say READY. May run beside `send_iteration`.
        A cancellation aborts the stream. Returns at once where the stream has no disks.

        :raises ProtocolViolation: it was final already.
        :raises StreamError: the stream failed, now or earlier; RemoteDiskFailed where a disk of the destination did.
        """
        if self._disks is not None:
            await in_thread(
                self._disks.finish, final, on_cancel=lambda: self.abort("waiting for the disks was cancelled")
            )

    def send_iteration(
        self, iteration: int, runs: PageRuns, memory: MappedMemory, record_sent: RecordSent | None = None
    ) -> IterationSent:
        """Send the pages of `runs` as they are now; return when the destination has placed every one of them.

        Blocking: call it in a thread. `iteration` (0 to 2**32 - 1) must be greater than the last one. The guest may
        go on writing; a page that it writes meanwhile arrives in some state and is for the tracer to report again.

        :raises PageRunsError: `runs` is not valid for this guest; nothing was sent, the stream goes on.
        :raises ProtocolViolation: as above, if `iteration` is not greater than the last one, or there is no memory.
        :raises StreamError: the stream failed, now or earlier. All page threads have ended, no view of `memory` is
            held, and every later call raises the same error. What the destination holds is then worthless.
        """
        self._raise_failure()
        if not self._workers:
            raise ProtocolViolation("The stream has no memory to send.")
        validate(runs, self._page_count)
        if not self._last_iteration < iteration < 2**32:
            raise ProtocolViolation(f"Iteration {iteration} does not follow {self._last_iteration}.")
        self._last_iteration = iteration
        before, began = self.progress(), time.monotonic()
        job = _Iteration(iteration, runs, memory, record_sent)
        for worker in self._workers:
            worker.jobs.put(job)
        try:
            ack = self._await_ack(iteration)
            after = self.progress()
            pages, zero_pages = after.pages - before.pages, after.zero_pages - before.zero_pages
            self._check_ack(ack, iteration, page_total(runs), zero_pages)
        except Exception as error:
            self._stop_workers(error)
            self._raise_failure()
            raise
        duration_ms = (time.monotonic() - began) * 1000
        wire_bytes = after.wire_bytes - before.wire_bytes
        return IterationSent(iteration, pages, zero_pages, pages * PAGE_BYTES, wire_bytes, duration_ms)

    def abort(self, reason: str) -> None:
        """Stop sending pages and disks at once, from any thread: `send_iteration` raises StreamAborted. The control
        channel stays, to tell the peer why."""
        self._fail(StreamAborted(reason))

    async def close(self) -> None:
        """End all threads and connections. Idempotent; after a finished migration and after a failed one alike."""
        self._fail(StreamAborted("the stream was closed"))
        await asyncio.to_thread(self._join)
        await self.control.close()

    # ---- inside

    def _await_ack(self, iteration: int) -> FrameHeader:
        waiting = len(self._workers)
        ack: FrameHeader | None = None
        while waiting or ack is None:
            limit_s = None if waiting else self._spec.timeouts.silent_peer_s
            try:
                letter = self._mailbox.get(timeout=limit_s)
            except queue.Empty:
                raise PeerSilent(0, f"the ack of iteration {iteration}", limit_s or 0.0) from None
            if isinstance(letter, _Worker):
                waiting -= 1
            elif isinstance(letter, FrameHeader):
                ack = letter
            elif isinstance(letter, ConnectionLost):
                raise self._explained(letter)
            else:
                raise letter
        return ack

    def _explained(self, lost: ConnectionLost) -> Exception:
        """A lost page channel is often the echo of a failure that the peer is just about to explain."""
        deadline = time.monotonic() + _EXPLANATION_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                letter = self._mailbox.get(timeout=left_s)
            except queue.Empty:
                break
            if isinstance(letter, RemoteFailure | StreamAborted):
                return letter
        return lost

    @staticmethod
    def _check_ack(ack: FrameHeader, iteration: int, pages: int, zero_pages: int) -> None:
        wanted = (iteration, pages - zero_pages, zero_pages)
        if (ack.iteration, ack.first, ack.total) != wanted:
            raise ProtocolViolation(
                f"The destination acknowledged iteration {ack.iteration} with {ack.first} data and {ack.total} zero "
                f"pages; {wanted[1]} and {wanted[2]} of iteration {iteration} were sent."
            )

    def _on_ack(self, ack: FrameHeader) -> None:
        if ack.type is FrameType.SYNC_ACK:
            self._mailbox.put(ack)
        elif self._disks is None:
            raise ProtocolViolation("An ack came of disks that the stream doesn't have.")
        else:
            self._disks.acknowledge(ack)

    def _on_remote_failure(self, message: ControlMessage) -> None:
        failure = RemoteFailure(message.text)
        disk = frames.decode_failed_value(message.value)
        if disk is not None:
            failure = RemoteDiskFailed(*disk, message.text)
        self._mailbox.put(failure)
        if self._disks is not None:
            self._fail(failure)

    def _on_control_lost(self, error: StreamError) -> None:
        self._mailbox.put(error)
        if self._disks is not None:
            self._fail(error)

    def _check_message(self, message: ControlMessage) -> None:
        if message.code is ControlCode.READY and self._disks is not None and not self._disks.final:
            raise ProtocolViolation("READY was said before the disks were handed over.")

    def _fail(self, error: Exception) -> None:
        if self._failure.setdefault("first", error) is not error:
            return
        self._cap.stop()
        # Into the mailbox before the sockets go: whoever waits there hears the cause, not its echo.
        self._mailbox.put(error)
        for worker in self._workers:
            worker.channel.shut_down()
            worker.jobs.put(None)
        if self._disks is not None:
            self._disks.fail(error)

    def _raise_failure(self) -> None:
        if "first" in self._failure:
            raise self._failure["first"]
        if self.control.lost is not None:
            self._stop_workers(self.control.lost)
            raise self._failure["first"]

    def _stop_workers(self, error: Exception) -> None:
        self._fail(error)
        for worker in self._workers:
            worker.thread.join()

    def _join(self) -> None:
        for worker in self._workers:
            worker.thread.join()
            worker.channel.close()
        if self._disks is not None:
            self._disks.join()

"""Both ends of a stream over loopback, with real guest memories, a recording relay between them where it matters."""

import asyncio
import contextlib
import dataclasses
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest

from tests.wire.recording_relay import RecordingRelay, Tamper, forward_unchanged, recording_relay
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import (
    PAGE_BYTES,
    PageRuns,
    PageRunsError,
    empty_runs,
    page_total,
    runs_from_bool,
    runs_from_indexes,
)
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DestinationStreams,
    DeviceStateChunk,
    DigestsReceived,
    Encryption,
    IterationSent,
    ReceiverSpec,
    SourceStreams,
    StreamSecret,
    StreamSpec,
    StreamTimeouts,
)
from vmx.stream.connection import PageSender
from vmx.stream.errors import (
    ChannelsMissing,
    ConnectionLost,
    LayoutMismatch,
    LimitExceeded,
    PeerClosed,
    PeerSilent,
    ProtocolViolation,
    RecordForged,
    RemoteFailure,
    StreamAborted,
    StreamError,
)
from vmx.stream.frames import FrameHeader, FrameType, encode_header
from vmx.stream.recorded import IterationRecord, check_recording
from vmx.stream.records import Sealer
from vmx.stream.verify import compare, digest_memory

SOURCE, DESTINATION = "127.0.2.1", "127.0.2.2"
PAGE_COUNT = 8192
RAM_BYTES = PAGE_COUNT * PAGE_BYTES
TIMEOUT_S = 20.0
DEFAULT_TIMEOUTS = StreamTimeouts()


def new_secret() -> StreamSecret:
    return StreamSecret(secrets.randbits(62) + 1, secrets.token_bytes(32), secrets.token_bytes(32))


def fill(memory: GuestMemory, runs: PageRuns, seed: int) -> None:
    random = np.random.default_rng(seed)
    with memory.mapped() as mapped:
        for first, count in runs.tolist():
            mapped.pages[first : first + count] = random.integers(
                0, 256, size=(count, PAGE_BYTES), dtype=np.uint8
            )


def content(memory: GuestMemory) -> bytes:
    with memory.mapped(writable=False) as mapped:
        return bytes(mapped.view)


async def until(condition: Callable[[], bool]) -> None:
    """Progress counters are made to be polled: there is no event to wait for."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def random_runs(seed: int, share: float) -> PageRuns:
    random = np.random.default_rng(seed)
    mask = random.random(PAGE_COUNT) < share
    for first in random.integers(0, PAGE_COUNT - 600, size=3):
        mask[first : first + 600] = True
    return runs_from_bool(mask)


@dataclasses.dataclass
class Rig:
    """Two memories and the two connected ends."""

    source_memory: GuestMemory
    destination_memory: GuestMemory
    source: SourceStreams
    destination: DestinationStreams
    relay: RecordingRelay | None
    secret: StreamSecret

    async def send(self, iteration: int, runs: PageRuns) -> IterationSent:
        with self.source_memory.mapped(writable=False) as mapped:
            return await asyncio.to_thread(self.source.send_iteration, iteration, runs, mapped)


@contextlib.contextmanager
def guest_memory(page_count: int = PAGE_COUNT) -> Iterator[GuestMemory]:
    memory = GuestMemory.create("stream-test", page_count * PAGE_BYTES)
    try:
        yield memory
    finally:
        memory.close()


@dataclasses.dataclass(frozen=True)
class Wiring:
    """How a rig is put together."""

    channel_count: int = 2
    encryption: Encryption = Encryption.AES_256_GCM
    keep_digests: bool = False
    tamper: Tamper | None = None
    bandwidth_bytes_per_s: int = 0
    timeouts: StreamTimeouts = DEFAULT_TIMEOUTS


@contextlib.asynccontextmanager
async def rig(wiring: Wiring = Wiring()) -> AsyncIterator[Rig]:
    secret = new_secret()
    async with contextlib.AsyncExitStack() as stack:
        source_memory = stack.enter_context(guest_memory())
        destination_memory = stack.enter_context(guest_memory())
        spec = ReceiverSpec(
            secret,
            DESTINATION,
            (SOURCE,),
            wiring.channel_count,
            wiring.encryption,
            wiring.keep_digests,
            wiring.timeouts,
        )
        destination = DestinationStreams.listen(spec, destination_memory)
        stack.push_async_callback(destination.close)
        address, port, relay = DESTINATION, destination.port, None
        if wiring.tamper is not None:
            relay, port = await stack.enter_async_context(
                recording_relay((DESTINATION, port), SOURCE, wiring.tamper)
            )
            address = "127.0.2.9"
        stream_spec = StreamSpec(
            secret,
            SOURCE,
            address,
            port,
            RAM_BYTES,
            wiring.channel_count,
            wiring.encryption,
            bandwidth_bytes_per_s=wiring.bandwidth_bytes_per_s,
            timeouts=wiring.timeouts,
        )
        accepting = asyncio.create_task(destination.accept(TIMEOUT_S))
        source = await SourceStreams.connect(stream_spec)
        stack.push_async_callback(source.close)
        await accepting
        yield Rig(source_memory, destination_memory, source, destination, relay, secret)


MODES = [(Encryption.AES_256_GCM, 1), (Encryption.AES_256_GCM, 3), (Encryption.DISABLED, 2)]


@pytest.mark.parametrize(("encryption", "channel_count"), MODES)
async def test_iterations_random_runs_arrive_byte_for_byte(
    encryption: Encryption, channel_count: int
) -> None:
    async with rig(Wiring(channel_count, encryption, keep_digests=True)) as r:
        for iteration, share in enumerate([0.5, 0.05, 0.01, 0.3]):
            runs = random_runs(iteration, share)
            fill(r.source_memory, runs, iteration)
            sent = await r.send(iteration, runs)
            assert sent.pages == page_total(runs)
            assert sent.wire_bytes >= sent.ram_bytes
            assert content(r.source_memory) == content(r.destination_memory)
        assert r.destination.digests is not None
        assert compare(digest_memory(r.source_memory), r.destination.digests).equal
        assert r.source.progress().pages == r.destination.progress().pages
        assert r.source.progress().wire_bytes == r.destination.progress().wire_bytes


async def test_zero_pages_travel_as_numbers_and_clear_what_was_there() -> None:
    async with rig(Wiring(keep_digests=True)) as r:
        runs = np.array([[0, 5000]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        await r.send(0, runs)
        with r.source_memory.mapped() as mapped:
            mapped.pages[0:700] = 0
            mapped.pages[1001:4001:3] = 0
        wide = np.array([[0, 5000], [6000, 2000]], dtype=np.int64)
        sent = await r.send(1, wide)
        assert sent.zero_pages == 700 + 1000 + 2000
        populated = r.destination_memory.populated_runs()
        assert int((populated[:, 0] + populated[:, 1]).max()) <= 5000, (
            "zero pages that never existed stay holes"
        )
        assert content(r.source_memory) == content(r.destination_memory)
        assert r.destination.digests is not None
        assert compare(digest_memory(r.source_memory), r.destination.digests).equal


async def test_pages_written_while_sending_are_equal_after_the_last_iteration() -> None:
    """The guest writes all the time; every page it wrote is sent again once it is stopped, as a tracer has it done."""
    async with rig(Wiring(keep_digests=True)) as r:
        everything = np.array([[0, PAGE_COUNT]], dtype=np.int64)
        fill(r.source_memory, everything, 1)
        stop, dirtied = threading.Event(), np.zeros(PAGE_COUNT, dtype=np.bool_)

        def write() -> None:
            random = np.random.default_rng(2)
            with r.source_memory.mapped() as mapped:
                while not stop.is_set():
                    some = random.integers(0, PAGE_COUNT, size=64)
                    dirtied[some] = True
                    mapped.pages[some] += np.uint8(1)

        writer = asyncio.create_task(asyncio.to_thread(write))
        try:
            for iteration in range(4):
                await r.send(iteration, everything)
        finally:
            stop.set()
            await writer
        await r.send(4, runs_from_bool(dirtied))
        assert content(r.source_memory) == content(r.destination_memory)
        assert r.destination.digests is not None
        assert compare(digest_memory(r.source_memory), r.destination.digests).equal


async def test_digests_something_lay_in_the_destination_is_found() -> None:
    """A page that the destination had and the source never sent does not pass as equal."""
    secret = new_secret()
    with guest_memory() as memory:
        fill(memory, np.array([[77, 1]], dtype=np.int64), 1)
        destination = DestinationStreams.listen(
            ReceiverSpec(secret, DESTINATION, (SOURCE,), 1, keep_digests=True), memory
        )
        accepting = asyncio.create_task(destination.accept(TIMEOUT_S))
        source = await SourceStreams.connect(
            StreamSpec(secret, SOURCE, DESTINATION, destination.port, RAM_BYTES, 1)
        )
        await accepting
        with guest_memory() as empty:
            assert destination.digests is not None
            assert compare(digest_memory(empty), destination.digests).differing_pages == (77,)
        await source.close()
        await destination.close()


async def test_whole_migration_recorded_keeps_the_protocol_and_hides_its_content() -> None:
    async with rig(Wiring(tamper=forward_unchanged)) as r:
        assert r.relay is not None
        pattern = b"the guest's secret: " * 12
        with r.source_memory.mapped() as mapped:
            mapped.view[: len(pattern)] = pattern
            mapped.view[PAGE_BYTES * 300 : PAGE_BYTES * 300 + len(pattern)] = pattern
        await r.send(0, np.array([[0, 1000]], dtype=np.int64))
        await r.send(1, runs_from_indexes(np.array([0, 5, 300, 301, 4000])))
        await r.send(2, empty_runs())
        state = secrets.token_bytes(700_000)
        await r.source.control.send_device_state(state, 0, last=True)
        received = bytearray()
        while True:
            chunk = await r.destination.receive(TIMEOUT_S)
            assert isinstance(chunk, DeviceStateChunk)
            assert chunk.offset == len(received)
            received += chunk.data
            if chunk.last:
                break
        assert received == state
        await r.destination.control.send(ControlMessage(ControlCode.READY))
        assert await r.source.control.receive(TIMEOUT_S) == ControlMessage(ControlCode.READY)
        await r.source.control.send(ControlMessage(ControlCode.COMMIT, 6))
        assert await r.destination.receive(TIMEOUT_S) == ControlMessage(ControlCode.COMMIT, 6)
        await r.destination.control.send(ControlMessage(ControlCode.RESUMED, 0, "{}"))
        assert await r.source.control.receive(TIMEOUT_S) == ControlMessage(ControlCode.RESUMED, 0, "{}")
        table = digest_memory(r.destination_memory)
        await r.destination.control.send_digests(table)
        digests = await r.source.control.receive(TIMEOUT_S)
        assert isinstance(digests, DigestsReceived)
        assert compare(digest_memory(r.source_memory), digests.digests).equal
        recordings = r.relay.recordings
        found = check_recording(r.secret, PAGE_COUNT, recordings)
        assert found.iterations == (
            IterationRecord(0, 2, 998),
            IterationRecord(1, 2, 3),
            IterationRecord(2, 0, 0),
        )
        assert found.device_state == state
        assert [m.code for m in found.to_destination] == [ControlCode.LAYOUT, ControlCode.COMMIT]
        wire = b"".join(part for c in recordings for part in (c.to_destination, c.to_source))
        assert b"secret" not in wire
        assert r.secret.key not in wire
        assert r.secret.token not in wire
        with pytest.raises(StreamError):
            check_recording(new_secret(), PAGE_COUNT, recordings)


async def test_recording_in_the_clear_shows_its_content() -> None:
    """The counterpart of the test above: it would see a pattern that is there to be seen."""
    async with rig(Wiring(encryption=Encryption.DISABLED, tamper=forward_unchanged)) as r:
        assert r.relay is not None
        with r.source_memory.mapped() as mapped:
            mapped.view[:6] = b"secret"
        await r.send(0, np.array([[0, 1]], dtype=np.int64))
        assert any(b"secret" in c.to_destination for c in r.relay.recordings)
        assert check_recording(r.secret, PAGE_COUNT, r.relay.recordings).sent_pages.tolist() == [0]


@pytest.mark.parametrize("at", [0, 40, 200_000])
async def test_flipped_bit_ends_the_stream_on_both_sides(at: int) -> None:
    """`at` bytes after the handshake: in the first header's record, in the tag or the body, in a later body."""
    handshake_bytes = 64 + 48

    def flip(connection: int, start: int, piece: bytes) -> bytes:
        place = handshake_bytes + at - start
        if connection not in page_connections or not 0 <= place < len(piece):
            return piece
        changed = bytearray(piece)
        changed[place] ^= 0x10
        return bytes(changed)

    page_connections: set[int] = set()
    async with rig(Wiring(tamper=flip)) as r:
        assert r.relay is not None
        # The third and fourth bytes after HELLO's magic hold the channel's index; control must stay whole.
        page_connections |= {n for n, c in enumerate(r.relay.connections) if c.to_destination[10] != 0}
        runs = np.array([[0, PAGE_COUNT]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        with pytest.raises(RemoteFailure):
            await r.send(0, runs)
        with pytest.raises(RecordForged):
            await r.destination.receive(TIMEOUT_S)
        with pytest.raises(RemoteFailure):
            await r.send(1, runs)


async def test_connection_cut_within_an_iteration_is_told_to_both_sides() -> None:
    cut = asyncio.Event()

    def watch(_connection: int, at: int, piece: bytes) -> bytes:
        if at > 1_000_000:
            cut.set()
        return piece

    async with rig(Wiring(tamper=watch, bandwidth_bytes_per_s=20_000_000)) as r:
        assert r.relay is not None
        runs = np.array([[0, PAGE_COUNT]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        sending = asyncio.create_task(r.send(0, runs))
        await cut.wait()
        r.relay.cut()
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionLost):
                await sending
            with pytest.raises(ConnectionLost):
                await r.destination.receive(TIMEOUT_S)


async def test_abort_unblocks_a_sender_at_once_and_leaves_the_control_channel() -> None:
    async with rig(Wiring(bandwidth_bytes_per_s=1_000_000)) as r:
        runs = np.array([[0, PAGE_COUNT]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        sending = asyncio.create_task(r.send(0, runs))
        await until(lambda: r.source.progress().wire_bytes > 0)
        await r.source.control.send(ControlMessage(ControlCode.CANCEL, text="on request"))
        r.source.abort("cancelled")
        async with asyncio.timeout(5):
            with pytest.raises(StreamAborted):
                await sending
            assert await r.destination.receive(TIMEOUT_S) == ControlMessage(
                ControlCode.CANCEL, text="on request"
            )
        assert not [
            t.name for t in threading.enumerate() if t.name.startswith("stream-send") and t.is_alive()
        ]


async def test_destination_closing_is_heard_by_a_sender_at_work() -> None:
    async with rig(Wiring(bandwidth_bytes_per_s=5_000_000)) as r:
        runs = np.array([[0, PAGE_COUNT]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        sending = asyncio.create_task(r.send(0, runs))
        await until(lambda: r.destination.progress().pages > 0)
        await r.destination.close()
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionLost):
                await sending


async def test_failed_message_reaches_a_sender_at_work_and_the_owner() -> None:
    async with rig(Wiring(bandwidth_bytes_per_s=5_000_000)) as r:
        runs = np.array([[0, PAGE_COUNT]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        sending = asyncio.create_task(r.send(0, runs))
        await r.destination.control.send(ControlMessage(ControlCode.FAILED, text="no room"))
        with pytest.raises(RemoteFailure, match="no room"):
            await sending
        assert await r.source.control.receive(TIMEOUT_S) == ControlMessage(ControlCode.FAILED, text="no room")


async def test_silent_peer_is_noticed_on_the_control_channel() -> None:
    """The destination's keepalives stop when its control channel is swallowed by the network."""

    def swallow(connection: int, at: int, piece: bytes) -> bytes:
        return b"" if silent and at > 112 else piece

    silent = False
    timeouts = StreamTimeouts(silent_peer_s=0.4)
    async with rig(Wiring(tamper=swallow, timeouts=timeouts)) as r:
        await asyncio.sleep(1.0)
        assert r.destination.control.lost is None, "keepalives hold an idle stream open"
        silent = True
        with pytest.raises(PeerSilent):
            await r.destination.receive(TIMEOUT_S)


async def test_receive_timeout_loses_no_message() -> None:
    async with rig() as r:
        with pytest.raises(PeerSilent):
            await r.destination.receive(0.01)
        await r.source.control.send(ControlMessage(ControlCode.CANCEL))
        assert await r.destination.receive(TIMEOUT_S) == ControlMessage(ControlCode.CANCEL)


async def test_send_iteration_wrong_arguments_send_nothing() -> None:
    async with rig() as r:
        with pytest.raises(PageRunsError):
            await r.send(0, np.array([[PAGE_COUNT - 1, 2]], dtype=np.int64))
        await r.send(3, empty_runs())
        with pytest.raises(ProtocolViolation):
            await r.send(3, empty_runs())
        await r.send(4, np.array([[PAGE_COUNT - 1, 1]], dtype=np.int64))


async def test_layout_of_another_size_is_refused_on_both_sides() -> None:
    secret = new_secret()
    with guest_memory(64) as memory:
        destination = DestinationStreams.listen(ReceiverSpec(secret, DESTINATION, (SOURCE,), 1), memory)
        accepting = asyncio.create_task(destination.accept(TIMEOUT_S))
        source = await SourceStreams.connect(
            StreamSpec(secret, SOURCE, DESTINATION, destination.port, RAM_BYTES, 1)
        )
        with pytest.raises(LayoutMismatch):
            await accepting
        message = await source.control.receive(TIMEOUT_S)
        assert isinstance(message, ControlMessage)
        assert message.code is ControlCode.FAILED
        await destination.close()
        await source.close()


async def test_accept_nobody_comes_raises_and_frees_the_port() -> None:
    with guest_memory(64) as memory:
        spec = ReceiverSpec(new_secret(), DESTINATION, (SOURCE,), 1)
        destination = DestinationStreams.listen(spec, memory)
        port = destination.port
        with pytest.raises(ChannelsMissing):
            await destination.accept(0.05)
        await destination.close()
        again = DestinationStreams.listen(spec, memory)
        assert again.port == port
        await again.close()


# ---- a proven peer that breaks the rules: frames sent by hand on a page channel


def page(number: int, iteration: int = 0) -> FrameHeader:
    return FrameHeader(FrameType.PAGES, PAGE_BYTES, iteration, 1, number, 1)


RULE_BREAKERS: dict[str, tuple[list[FrameHeader], type[StreamError]]] = {
    "page_beyond_guest": ([page(PAGE_COUNT)], LimitExceeded),
    "oversize_frame": ([FrameHeader(FrameType.PAGES, 300 * PAGE_BYTES, 0, 1, 0, 300)], LimitExceeded),
    "huge_body_length": ([FrameHeader(FrameType.PAGES, 2**32 - 1, 0, 1, 0, 1)], ProtocolViolation),
    "control_on_a_page_channel": ([FrameHeader(FrameType.CONTROL, count=3)], ProtocolViolation),
    "sync_counts_wrong": ([page(1), FrameHeader(FrameType.SYNC, first=2)], ProtocolViolation),
    "two_iterations_at_once": ([page(1, 0), page(2, 1)], ProtocolViolation),
    "goes_on_before_the_ack": (
        [page(1), FrameHeader(FrameType.SYNC, first=1), page(2, 1)],
        ProtocolViolation,
    ),
}


@pytest.mark.parametrize(("headers", "error"), RULE_BREAKERS.values(), ids=RULE_BREAKERS.keys())
async def test_rule_breaking_frames_end_the_stream(
    headers: list[FrameHeader], error: type[StreamError]
) -> None:
    async with rig() as r:
        sender = page_sender(r.source)
        for header in headers:
            body = memoryview(bytes(header.body_bytes)) if header.body_bytes == PAGE_BYTES else None
            if body is not None:
                sender.send_frame(header, body)
            else:
                # Only the header: what it announces must not even be waited for.
                sender.send_frame(dataclasses.replace(header))
        with pytest.raises(error):
            await r.destination.receive(TIMEOUT_S)
        message = await r.source.control.receive(TIMEOUT_S)
        assert isinstance(message, ControlMessage)
        assert message.code is ControlCode.FAILED


def page_sender(streams: SourceStreams) -> PageSender:
    return streams._workers[0].channel


async def test_unsorted_run_table_places_nothing() -> None:
    async with rig() as r:
        table = np.array([[5, 1], [4, 1]], dtype=np.int64).tobytes()
        header = FrameHeader(FrameType.PAGES, len(table) + 2 * PAGE_BYTES, 0, 2, 5, 2)
        page_sender(r.source).send_frame(header, memoryview(table + b"\xff" * (2 * PAGE_BYTES)))
        with pytest.raises(ProtocolViolation):
            await r.destination.receive(TIMEOUT_S)
        assert len(r.destination_memory.populated_runs()) == 0


async def test_unknown_frame_type_ends_the_stream() -> None:
    async with rig() as r:
        sender = page_sender(r.source)
        plain = bytes([200]) + encode_header(page(1))[1:]
        sealed = bytearray(48)
        sealer: Sealer = sender._sealer
        sealer.seal_into(plain, sealed)
        sender._sock.sendall(sealed)
        with pytest.raises(ProtocolViolation):
            await r.destination.receive(TIMEOUT_S)


async def test_page_channel_ending_between_iterations_is_no_failure() -> None:
    async with rig() as r:
        await r.send(0, np.array([[0, 4]], dtype=np.int64))
        r.source.abort("done with pages")
        await r.source.control.send(ControlMessage(ControlCode.COMMIT, 2))
        assert await r.destination.receive(TIMEOUT_S) == ControlMessage(ControlCode.COMMIT, 2)


async def test_peer_closed_is_raised_after_the_messages_before_it() -> None:
    async with rig() as r:
        await r.source.control.send(ControlMessage(ControlCode.CANCEL, text="bye"))
        await r.source.close()
        assert await r.destination.receive(TIMEOUT_S) == ControlMessage(ControlCode.CANCEL, text="bye")
        with pytest.raises(PeerClosed):
            await r.destination.receive(TIMEOUT_S)

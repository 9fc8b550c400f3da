"""Both ends of a stream over loopback, with real guest memories, a recording relay between them where it matters."""

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator

import numpy as np
import pytest
import uvloop
from blockbuster import blockbuster_ctx

from tests.wire.recording_relay import forward_unchanged
from tests.wire.stream_rig import (
    DESTINATION,
    PAGE_COUNT,
    RAM_BYTES,
    SOURCE,
    TIMEOUT_S,
    Wiring,
    content,
    fill,
    guest_memory,
    new_secret,
    random_runs,
    rig,
    until,
)
from vmx.guest.pages import (
    PAGE_BYTES,
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
    ReceiverSpec,
    SourceStreams,
    StreamSpec,
    StreamTimeouts,
)
from vmx.stream.errors import (
    ChannelsMissing,
    ConnectionLost,
    LayoutMismatch,
    PeerClosed,
    PeerSilent,
    ProtocolViolation,
    RecordForged,
    RemoteFailure,
    StreamAborted,
    StreamError,
)
from vmx.stream.recorded import IterationRecord, check_recording
from vmx.stream.verify import compare, digest_memory


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


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


async def test_record_sent_hears_the_very_bytes_that_arrive() -> None:
    """While the guest writes: what a hash tracer is told is what the destination got, page for page."""
    async with rig(Wiring(channel_count=3)) as r:
        runs = random_runs(7, 0.2)
        fill(r.source_memory, runs, 7)
        heard = np.zeros((PAGE_COUNT, PAGE_BYTES), dtype=np.uint8)
        stop = threading.Event()

        def record(first: int, copied: memoryview) -> None:
            pages = np.frombuffer(copied, dtype=np.uint8).reshape(-1, PAGE_BYTES)
            heard[first : first + len(pages)] = pages

        def write() -> None:
            random = np.random.default_rng(8)
            with r.source_memory.mapped() as mapped:
                while not stop.is_set():
                    some = random.integers(0, PAGE_COUNT, size=64)
                    mapped.pages[some] = random.integers(0, 3, dtype=np.uint8)

        writer = asyncio.create_task(asyncio.to_thread(write))
        try:
            with r.source_memory.mapped(writable=False) as mapped:
                await asyncio.to_thread(r.source.send_iteration, 0, runs, mapped, record)
        finally:
            stop.set()
            await writer
        assert content(r.destination_memory) == heard.tobytes()


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


@pytest.mark.parametrize(
    "scenario",
    [
        test_zero_pages_travel_as_numbers_and_clear_what_was_there,
        test_pages_written_while_sending_are_equal_after_the_last_iteration,
        test_whole_migration_recorded_keeps_the_protocol_and_hides_its_content,
        test_connection_cut_within_an_iteration_is_told_to_both_sides,
        test_abort_unblocks_a_sender_at_once_and_leaves_the_control_channel,
        test_destination_closing_is_heard_by_a_sender_at_work,
        test_failed_message_reaches_a_sender_at_work_and_the_owner,
        test_silent_peer_is_noticed_on_the_control_channel,
        test_receive_timeout_loses_no_message,
        test_layout_of_another_size_is_refused_on_both_sides,
        test_peer_closed_is_raised_after_the_messages_before_it,
    ],
)
def test_scenario_holds_on_uvloop(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    """vmx runs on uvloop; the tests above run on the standard loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert isinstance(runner.get_loop(), uvloop.Loop)
        runner.run(scenario())

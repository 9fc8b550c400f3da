"""Disks through both ends of a stream: bulk data and mirrored writes, barriers, and every way in which it can end."""

import asyncio
import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from blockbuster import blockbuster_ctx

from tests.framework.fake_disk_sink import FakeDiskSink, broken_disk, disk_full
from tests.wire.recording_relay import forward_unchanged
from tests.wire.stream_rig import (
    DESTINATION,
    SOURCE,
    TIMEOUT_S,
    Rig,
    Wiring,
    content,
    fill,
    guest_memory,
    new_secret,
    rig,
    until,
)
from vmx.disk.contract import SECTOR_BYTES
from vmx.disk.errors import DiskError, DiskFull, DiskRangeError, DiskWriteFailed
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DestinationStreams,
    DiskExtent,
    DiskFaultCode,
    DiskPlacementFailed,
    Encryption,
    ReceiverSpec,
    RemoteDisk,
    RemoteDiskFailed,
    SourceStreams,
    StreamSpec,
    StreamTimeouts,
)
from vmx.stream.errors import (
    DisksMismatch,
    PeerSilent,
    ProtocolViolation,
    RemoteFailure,
    SpecInvalid,
    StreamAborted,
    StreamError,
)
from vmx.stream.recorded import check_recording

MIB = 1 << 20
DISKS = (DiskExtent(2000, 4 * MIB), DiskExtent(2001, MIB + SECTOR_BYTES))
WIRING = Wiring(disks=DISKS)
FILES_ONLY = Wiring(disks=DISKS, has_memory=False)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


def some_bytes(length: int) -> memoryview:
    return memoryview(secrets.token_bytes(length))


def copy(disk: RemoteDisk, image: memoryview, threads: int = 3, chunk_bytes: int = 96 * 1024) -> None:
    """A bulk copy by several threads, as vmx/disk has it."""

    def work(number: int) -> None:
        for at in range(number * chunk_bytes, len(image), threads * chunk_bytes):
            disk.write_bulk(at, image[at : at + chunk_bytes])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def mirrored(disk: RemoteDisk, offset: int, data: memoryview) -> None:
    await asyncio.to_thread(disk.write_mirrored, offset, data)


@pytest.mark.parametrize(
    "wiring",
    [
        WIRING,
        FILES_ONLY,
        dataclasses.replace(FILES_ONLY, disk_channel_count=1),
        dataclasses.replace(FILES_ONLY, encryption=Encryption.DISABLED),
    ],
    ids=["with_memory", "files_only", "one_channel", "in_the_clear"],
)
async def test_bulk_copy_arrives_and_is_durable_when_finish_returns(wiring: Wiring) -> None:
    async with rig(wiring) as r:
        images = {disk.key: some_bytes(disk.capacity_bytes) for disk in DISKS}
        await asyncio.gather(
            *(asyncio.to_thread(copy, r.source.disks[key], image) for key, image in images.items())
        )
        await r.source.finish_disks()
        assert {key: sink.durable for key, sink in r.sinks.items()} == images
        assert not r.destination.disks_final
        total = sum(disk.capacity_bytes for disk in DISKS)
        sent, received = r.source.progress(), r.destination.progress()
        assert sent.disk_bytes == received.disk_bytes == total
        assert sent.disk_wire_bytes == received.disk_wire_bytes > total


async def test_bulk_write_longer_than_a_frame_is_cut() -> None:
    async with rig(FILES_ONLY) as r:
        image = some_bytes(3 * MIB)
        await asyncio.to_thread(r.source.disks[2000].write_bulk, SECTOR_BYTES, image)
        await r.source.finish_disks()
        assert r.sinks[2000].durable[SECTOR_BYTES : SECTOR_BYTES + 3 * MIB] == image
        assert r.sinks[2000].count("bulk") == 3


async def test_guest_that_writes_during_the_bulk_copy_has_its_disk_at_the_end() -> None:
    """Bulk data and mirrored writes pass each other in any order; what the guest wrote last is what is there."""
    async with rig(FILES_ONLY) as r:
        disk, sink = r.source.disks[2000], r.sinks[2000]
        image = bytearray(secrets.token_bytes(disk.capacity_bytes))
        lock = threading.Lock()

        def guest(seed: int) -> None:
            random = np.random.default_rng(seed)
            own = range(seed, disk.capacity_bytes // 4096, 3)  # no two writers have a range in common
            for block in random.choice(own, size=60).tolist():
                at = block * 4096
                if random.random() < 0.2:
                    with lock:
                        image[at : at + 4096] = bytes(4096)
                    disk.zero_mirrored(at, 4096)
                else:
                    data = random.bytes(4096)
                    with lock:
                        image[at : at + 4096] = data
                    disk.write_mirrored(at, memoryview(data))
                if random.random() < 0.1:
                    disk.flush()

        def bulk() -> None:
            for at in range(0, disk.capacity_bytes, 64 * 1024):
                with lock:  # read after the mirror began, as the contract has it
                    data = bytes(image[at : at + 64 * 1024])
                disk.write_bulk(at, memoryview(data))

        await asyncio.gather(asyncio.to_thread(bulk), *(asyncio.to_thread(guest, seed) for seed in range(3)))
        await r.source.finish_disks()
        await r.source.finish_disks(final=True)
        assert r.destination.disks_final
        assert sink.durable == image
        assert r.source.progress().mirrored_bytes == r.destination.progress().mirrored_bytes == 180 * 4096


async def test_mirrored_write_returns_when_it_is_written() -> None:
    async with rig(FILES_ONLY) as r:
        data = some_bytes(2 * MIB)
        await mirrored(r.source.disks[2000], 512, data)
        assert r.sinks[2000].data[512 : 512 + 2 * MIB] == data
        await asyncio.to_thread(r.source.disks[2000].zero_mirrored, 512, 2 * MIB)
        assert r.sinks[2000].data == bytes(4 * MIB)
        await mirrored(r.source.disks[2001], MIB, data[:512])
        await asyncio.to_thread(r.source.disks[2001].flush)
        assert r.sinks[2001].durable[MIB:] == data[:512]
        assert r.sinks[2000].count("flush") == 0


async def test_flush_that_waits_holds_up_no_write() -> None:
    async with rig(FILES_ONLY) as r:
        r.sinks[2000].flow.clear()
        flushing = [asyncio.create_task(asyncio.to_thread(r.source.disks[2000].flush)) for _ in range(5)]
        await until(r.sinks[2000].flushing.is_set)
        for disk in r.source.disks.values():
            await mirrored(disk, 0, some_bytes(512))
        assert not any(task.done() for task in flushing)
        r.sinks[2000].flow.set()
        await asyncio.gather(*flushing)
        assert 1 <= r.sinks[2000].count("flush") <= 5


async def test_finish_final_disks_are_flushed_before_ready_can_be_said() -> None:
    async with rig(WIRING) as r:
        with pytest.raises(ProtocolViolation):
            await r.destination.control.send(ControlMessage(ControlCode.READY))
        await mirrored(r.source.disks[2000], 0, some_bytes(512))
        await r.source.finish_disks()
        with pytest.raises(ProtocolViolation):
            await r.destination.control.send(ControlMessage(ControlCode.READY))
        await r.source.finish_disks(final=True)
        assert r.sinks[2000].durable == r.sinks[2000].data
        await r.destination.control.send(ControlMessage(ControlCode.READY, 4))
        assert await r.source.control.receive(TIMEOUT_S) == ControlMessage(ControlCode.READY, 4)


async def test_ready_before_the_disks_are_handed_over_is_refused_by_the_source() -> None:
    async with rig(FILES_ONLY) as r:
        assert r.destination._disks is not None
        r.destination._disks.final = True  # a destination that believes so wrongly
        await r.destination.control.send(ControlMessage(ControlCode.READY))
        with pytest.raises(ProtocolViolation):
            await r.source.control.receive(TIMEOUT_S)


async def test_finish_final_nothing_may_follow() -> None:
    async with rig(FILES_ONLY) as r:
        disk = r.source.disks[2000]
        await r.source.finish_disks(final=True)
        with pytest.raises(ProtocolViolation):
            await r.source.finish_disks()
        for call in (disk.write_bulk, disk.write_mirrored):
            with pytest.raises(DiskWriteFailed):
                await asyncio.to_thread(call, 0, some_bytes(512))
        with pytest.raises(DiskWriteFailed):
            await asyncio.to_thread(disk.flush)
        assert r.source.failure is None


async def test_finish_disks_runs_beside_an_iteration() -> None:
    async with rig(WIRING) as r:
        runs = np.array([[0, 4000]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        copying = asyncio.to_thread(copy, r.source.disks[2000], some_bytes(4 * MIB))
        await asyncio.gather(copying, r.send(0, runs))
        await asyncio.gather(r.source.finish_disks(final=True), r.send(1, runs[:0]))
        assert content(r.source_memory) == content(r.destination_memory)


async def test_finish_disks_without_disks_returns_at_once() -> None:
    async with rig() as r:
        await r.source.finish_disks(final=True)
        assert r.source.disks == {}
        assert r.destination.disks_final
        assert r.source.progress().disk_wire_bytes == 0


async def test_send_iteration_without_memory_raises() -> None:
    async with rig(FILES_ONLY) as r:
        with guest_memory(4) as memory, memory.mapped() as mapped, pytest.raises(ProtocolViolation):
            await asyncio.to_thread(r.source.send_iteration, 0, np.array([[0, 1]]), mapped)


RANGES = [(4 * MIB, 512), (-512, 512), (256, 512), (0, 100), (4 * MIB - 512, 1024)]


@pytest.mark.parametrize(("offset", "length"), RANGES)
async def test_range_outside_the_disk_raises_and_sends_nothing(offset: int, length: int) -> None:
    async with rig(FILES_ONLY) as r:
        disk = r.source.disks[2000]
        with pytest.raises(DiskRangeError):
            await asyncio.to_thread(disk.write_bulk, offset, memoryview(bytes(length)))
        with pytest.raises(DiskRangeError):
            await asyncio.to_thread(disk.write_mirrored, offset, memoryview(bytes(length)))
        with pytest.raises(DiskRangeError):
            await asyncio.to_thread(disk.zero_mirrored, offset, length)
        await r.source.finish_disks(final=True)
        assert r.sinks[2000].count("bulk") == 0


# ---- failures


Refuse = Callable[[FakeDiskSink], None]


def full(sink: FakeDiskSink) -> None:
    sink.fail_with = disk_full()


def broken(sink: FakeDiskSink) -> None:
    sink.fail_with = broken_disk()


REFUSED = [(full, DiskFull, DiskFaultCode.NO_SPACE), (broken, DiskWriteFailed, DiskFaultCode.IO_ERROR)]


@pytest.mark.parametrize(("refuse", "error", "code"), REFUSED, ids=["full", "broken"])
async def test_mirrored_write_that_is_refused_ends_both_sides_with_its_cause(
    refuse: Refuse, error: type[DiskError], code: DiskFaultCode
) -> None:
    async with rig(WIRING) as r:
        refuse(r.sinks[2001])
        with pytest.raises(error) as caught:
            await mirrored(r.source.disks[2001], 512, some_bytes(512))
        assert isinstance(caught.value, DiskFull) == (code is DiskFaultCode.NO_SPACE)
        await both_sides_know(r, 2001, code)


@pytest.mark.parametrize(("refuse", "error", "code"), REFUSED, ids=["full", "broken"])
async def test_bulk_data_that_is_refused_ends_both_sides_with_its_cause(
    refuse: Refuse, error: type[DiskError], code: DiskFaultCode
) -> None:
    """The write may have left already when the refusal comes: then it is finish_disks that tells."""
    async with rig(WIRING) as r:
        refuse(r.sinks[2000])
        disk = r.source.disks[2000]

        def copy_until_refused() -> None:
            while True:
                disk.write_bulk(0, memoryview(bytes(MIB)))

        with pytest.raises(error):
            await asyncio.to_thread(copy_until_refused)
        with pytest.raises(RemoteDiskFailed):
            await r.source.finish_disks()
        await both_sides_know(r, 2000, code)


async def test_flush_that_is_refused_fails_finish_disks() -> None:
    async with rig(FILES_ONLY) as r:
        r.sinks[2001].fail_flush_with = disk_full()
        with pytest.raises(RemoteDiskFailed):
            await r.source.finish_disks(final=True)
        await both_sides_know(r, 2001, DiskFaultCode.NO_SPACE)
        assert not r.destination.disks_final


async def test_guest_flush_that_is_refused_is_told_to_the_guest() -> None:
    async with rig(FILES_ONLY) as r:
        r.sinks[2000].fail_flush_with = broken_disk()
        with pytest.raises(DiskWriteFailed):
            await asyncio.to_thread(r.source.disks[2000].flush)
        await both_sides_know(r, 2000, DiskFaultCode.IO_ERROR)


async def both_sides_know(r: Rig, key: int, code: DiskFaultCode) -> None:
    with pytest.raises(DiskPlacementFailed) as at_destination:
        await r.destination.receive(TIMEOUT_S)
    assert (at_destination.value.key, at_destination.value.code) == (key, code)
    assert isinstance(at_destination.value.__cause__, DiskError)
    told = await r.source.control.receive(TIMEOUT_S)
    assert isinstance(told, ControlMessage)
    assert told.code is ControlCode.FAILED
    failure = r.source.failure
    assert isinstance(failure, RemoteDiskFailed)
    assert (failure.key, failure.code) == (key, code)
    for disk in r.source.disks.values():
        with pytest.raises(DiskWriteFailed):
            await asyncio.to_thread(disk.write_bulk, 0, memoryview(bytes(512)))
        with pytest.raises(DiskWriteFailed):
            await asyncio.to_thread(disk.flush)


async def test_destination_that_fails_wakes_every_waiting_writer() -> None:
    async with rig(FILES_ONLY) as r:
        r.sinks[2000].flow.clear()
        disk = r.source.disks[2000]
        waiting = [asyncio.create_task(asyncio.to_thread(disk.flush)) for _ in range(3)]
        waiting.append(asyncio.create_task(r.source.finish_disks()))
        await until(r.sinks[2000].flushing.is_set)
        await r.destination.control.send(ControlMessage(ControlCode.FAILED, text="the guest died"))
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in outcomes] == [DiskWriteFailed] * 3 + [RemoteFailure]
        assert "the guest died" in str(outcomes[0])


async def test_abort_wakes_every_waiting_writer() -> None:
    async with rig(FILES_ONLY) as r:
        r.sinks[2000].flow.clear()
        disk = r.source.disks[2000]
        waiting = [asyncio.create_task(asyncio.to_thread(disk.flush)) for _ in range(3)]
        waiting.append(asyncio.create_task(r.source.finish_disks()))
        await until(r.sinks[2000].flushing.is_set)
        r.source.abort("canceled")
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in outcomes] == [DiskWriteFailed] * 3 + [StreamAborted]
        await r.source.control.send(ControlMessage(ControlCode.CANCEL, text="canceled"))
        assert await r.destination.receive(TIMEOUT_S) == ControlMessage(ControlCode.CANCEL, text="canceled")


async def test_finish_disks_cancelled_ends_the_stream() -> None:
    async with rig(FILES_ONLY) as r:
        r.sinks[2000].flow.clear()
        finishing = asyncio.create_task(r.source.finish_disks())
        await until(r.sinks[2000].flushing.is_set)
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        assert isinstance(r.source.failure, StreamAborted)


async def test_cut_connections_are_told_to_both_sides() -> None:
    async with rig(dataclasses.replace(FILES_ONLY, tamper=forward_unchanged)) as r:
        assert r.relay is not None
        await mirrored(r.source.disks[2000], 0, some_bytes(512))
        r.relay.cut()
        with pytest.raises(StreamError):
            await r.destination.receive(TIMEOUT_S)
        with pytest.raises(DiskWriteFailed) as caught:
            await mirrored(r.source.disks[2000], 0, some_bytes(512))
        assert isinstance(caught.value.__cause__, StreamError)
        assert caught.value.errno == 0


@pytest.mark.parametrize("connection_bytes", [130, 700], ids=["header", "body"])
async def test_flipped_bit_on_the_mirror_writes_nothing_and_ends_the_stream(connection_bytes: int) -> None:
    def flip(number: int, at: int, piece: bytes) -> bytes:
        if at <= connection_bytes < at + len(piece) and number == mirror_number.get("is"):
            changed = bytearray(piece)
            changed[connection_bytes - at] ^= 1
            return bytes(changed)
        return piece

    mirror_number: dict[str, int] = {}
    async with rig(dataclasses.replace(FILES_ONLY, tamper=flip)) as r:
        assert r.relay is not None
        # Connections come in any order: HELLO says which one is the mirror's (role 4).
        mirror_number["is"] = [c.to_destination[9] for c in r.relay.connections].index(4)
        with pytest.raises(DiskWriteFailed):
            await mirrored(r.source.disks[2000], 0, some_bytes(4096))
        with pytest.raises(StreamError):
            await r.destination.receive(TIMEOUT_S)


async def test_mirror_silent_for_long_stays_while_control_lives() -> None:
    quick = StreamTimeouts(silent_peer_s=0.3)
    async with rig(dataclasses.replace(FILES_ONLY, timeouts=quick)) as r:
        await mirrored(r.source.disks[2000], 0, some_bytes(512))
        with pytest.raises(PeerSilent):  # three times the limit, and nothing but keep-alives
            await r.source.control.receive(0.9)
        await mirrored(r.source.disks[2000], 0, some_bytes(512))
        await r.source.finish_disks(final=True)
        assert r.source.failure is None


async def test_disk_that_stalls_longer_than_its_limit_ends_the_stream() -> None:
    quick = StreamTimeouts(disk_flush_s=0.3)
    async with rig(dataclasses.replace(FILES_ONLY, timeouts=quick)) as r:
        r.sinks[2000].flow.clear()
        with pytest.raises(PeerSilent):
            await r.source.finish_disks()
        r.sinks[2000].flow.set()


async def test_other_disks_are_refused_on_both_sides() -> None:
    secret = new_secret()
    other = (DISKS[0], DiskExtent(2001, MIB))
    spec = ReceiverSpec(secret, DESTINATION, (SOURCE,), 0, disks=other)
    sinks = {disk.key: FakeDiskSink(disk.capacity_bytes) for disk in other}
    destination = DestinationStreams.listen(spec, None, sinks)
    accepting = asyncio.create_task(destination.accept(TIMEOUT_S))
    source = await SourceStreams.connect(
        StreamSpec(secret, SOURCE, DESTINATION, destination.port, 0, 0, disks=DISKS)
    )
    try:
        with pytest.raises(DisksMismatch):
            await accepting
        message = await source.control.receive(TIMEOUT_S)
        assert isinstance(message, ControlMessage)
        assert message.code is ControlCode.FAILED
    finally:
        await source.close()
        await destination.close()


async def test_listen_sinks_of_other_disks_raise() -> None:
    spec = ReceiverSpec(new_secret(), DESTINATION, (SOURCE,), 0, disks=DISKS)
    with pytest.raises(SpecInvalid):
        DestinationStreams.listen(spec, None, {2000: FakeDiskSink(4 * MIB)})
    with guest_memory(4) as memory, pytest.raises(SpecInvalid):
        DestinationStreams.listen(spec, memory, {d.key: FakeDiskSink(d.capacity_bytes) for d in DISKS})


async def test_whole_migration_of_disks_recorded_keeps_the_protocol_and_hides_its_content() -> None:
    async with rig(dataclasses.replace(WIRING, tamper=forward_unchanged)) as r:
        assert r.relay is not None
        image = some_bytes(DISKS[1].capacity_bytes)
        runs = np.array([[0, 100]], dtype=np.int64)
        fill(r.source_memory, runs, 1)
        await asyncio.to_thread(copy, r.source.disks[2001], image)
        await asyncio.gather(
            *(mirrored(r.source.disks[2000], at * 4096, image[:4096]) for at in range(20)),
            asyncio.to_thread(r.source.disks[2001].zero_mirrored, 0, 1024),
            asyncio.to_thread(r.source.disks[2000].flush),
        )
        await r.send(0, runs)
        await r.source.finish_disks()
        await r.source.finish_disks(final=True)
        await r.destination.control.send(ControlMessage(ControlCode.READY, 4))
        await r.source.control.receive(TIMEOUT_S)
        await r.source.close()
        await r.destination.close()
        found = check_recording(r.secret, 8192, r.relay.recordings, DISKS)
        assert sum(write.length for write in found.disks.bulk) == DISKS[1].capacity_bytes
        assert len(found.disks.mirrored) == 21
        assert found.disks.barriers == 2
        said = b"".join(recording.to_destination for recording in r.relay.recordings)
        assert bytes(image[4096:4160]) not in said

"""Two connected ends of a stream with real guest memories and fake disks; a recording relay between where wanted."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np

from tests.framework.fake_disk_sink import FakeDiskSink
from tests.wire.recording_relay import RecordingRelay, Tamper, recording_relay
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns, runs_from_bool
from vmx.stream import (
    DestinationStreams,
    DiskExtent,
    Encryption,
    IterationSent,
    ReceiverSpec,
    SourceStreams,
    StreamSecret,
    StreamSpec,
    StreamTimeouts,
)

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
        while not condition():
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
    sinks: dict[int, FakeDiskSink]

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
    disks: tuple[DiskExtent, ...] = ()
    disk_channel_count: int = 2
    has_memory: bool = True


@contextlib.asynccontextmanager
async def rig(wiring: Wiring = Wiring()) -> AsyncIterator[Rig]:
    secret = new_secret()
    async with contextlib.AsyncExitStack() as stack:
        sinks = {disk.key: FakeDiskSink(disk.capacity_bytes) for disk in wiring.disks}
        channel_count = wiring.channel_count if wiring.has_memory else 0
        source_memory = stack.enter_context(guest_memory())
        destination_memory = stack.enter_context(guest_memory())
        spec = ReceiverSpec(
            secret,
            DESTINATION,
            (SOURCE,),
            channel_count,
            wiring.encryption,
            wiring.keep_digests,
            wiring.timeouts,
            wiring.disks,
            wiring.disk_channel_count,
        )
        memory = destination_memory if wiring.has_memory else None
        destination = DestinationStreams.listen(spec, memory, sinks)
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
            RAM_BYTES if wiring.has_memory else 0,
            channel_count,
            wiring.encryption,
            bandwidth_bytes_per_s=wiring.bandwidth_bytes_per_s,
            timeouts=wiring.timeouts,
            disks=wiring.disks,
            disk_channel_count=wiring.disk_channel_count,
        )
        accepting = asyncio.create_task(destination.accept(TIMEOUT_S))
        source = await SourceStreams.connect(stream_spec)
        stack.push_async_callback(source.close)
        await accepting
        for sink in sinks.values():  # a stalled disk must not hold up the end
            stack.callback(sink.flow.set)
        yield Rig(source_memory, destination_memory, source, destination, relay, secret, sinks)

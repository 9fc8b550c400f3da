"""How fast a disk goes through the disk channels, beside `qemu-img convert` of the same file: a command, not a test.

    python -m tests.performance.disk_stream [--bytes N] [--pairs N] [--folder DIR] [--figures FILE]

A file of random bytes (no zeros, no holes) is copied in turns by qemu-img and by the stream: two processes, as two
hosts have, the source's BulkCopy into a RemoteDisk, sealed over loopback, an ExtentWriter into a fresh thin extent.
The stream's time ends when all is flushed at the destination (finish_disks), and nothing of it is left out but the
start of the processes. qemu-img is timed both ways: as it comes (it flushes nothing: `-t unsafe` is its default) and
with the flush that the stream has (`-t writeback`). Figures are medians; each pair's ratio is taken within the pair.
Right before each run as much memory as it will fill is touched and given back: on a virtual machine whose free memory
goes back to its host after seconds, it would else be luck who pays for getting it again.
"""

import argparse
import asyncio
import dataclasses
import filecmp
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vmx.disk.bulk import BulkCopy, BulkOptions, RawSource
from vmx.disk.contract import DiskFormat, DiskLayout
from vmx.disk.extent import ExtentWriter
from vmx.stream import (
    DestinationStreams,
    DiskExtent,
    Encryption,
    ReceiverSpec,
    SourceStreams,
    StreamSecret,
    StreamSpec,
)

SOURCE, DESTINATION = "127.0.2.1", "127.0.2.2"
SECRET = StreamSecret(1, b"k" * 32, b"t" * 32)
KEY = 2000
DEADLINE_S = 300.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one run is made."""

    disk_bytes: int
    channels: int
    threads: int
    chunk_bytes: int
    encrypted: bool

    @property
    def disks(self) -> tuple[DiskExtent, ...]:
        return (DiskExtent(KEY, self.disk_bytes),)

    @property
    def encryption(self) -> Encryption:
        return Encryption.AES_256_GCM if self.encrypted else Encryption.DISABLED


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def receive(settings: Settings, target: Path) -> None:
    """The destination's process: says its port, takes the disk, ends with the source's connection."""
    with target.open("xb") as extent:
        extent.truncate(settings.disk_bytes)
    layout = DiskLayout(KEY, settings.disk_bytes, DiskFormat.THIN)
    with ExtentWriter(target, layout) as sink:
        spec = ReceiverSpec(
            SECRET,
            DESTINATION,
            (SOURCE,),
            0,
            settings.encryption,
            disks=settings.disks,
            disk_channel_count=settings.channels,
        )
        streams = DestinationStreams.listen(spec, None, {KEY: sink})
        print(streams.port, flush=True)
        try:
            await streams.accept(DEADLINE_S)
            while not streams.disks_final:
                await asyncio.sleep(0.05)
        finally:
            await streams.close()
    print(_cpu_s(), flush=True)


async def send(settings: Settings, source: Path, port: int) -> float:
    """The source's half of one run; how long it took until the destination had all of it, flushed."""
    spec = StreamSpec(
        SECRET,
        SOURCE,
        DESTINATION,
        port,
        0,
        0,
        settings.encryption,
        disks=settings.disks,
        disk_channel_count=settings.channels,
    )
    streams = await SourceStreams.connect(spec)
    try:
        with RawSource(source, settings.disk_bytes) as disk:
            options = BulkOptions(settings.threads, settings.chunk_bytes)
            began = time.monotonic()
            await asyncio.to_thread(BulkCopy(disk, streams.disks[KEY], options).run)
            await streams.finish_disks(final=True)
            return time.monotonic() - began
    finally:
        await streams.close()


def time_stream(settings: Settings, source: Path, target: Path) -> tuple[float, float]:
    """One run of the stream: seconds, and seconds of CPU on both sides."""
    command = [sys.executable, "-m", "tests.performance.disk_stream", "--receive", str(target)]
    command += ["--settings", json.dumps(dataclasses.asdict(settings))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "asked for a pipe"
        port = int(process.stdout.readline())
        touch_memory(settings.disk_bytes)
        cpu_before = _cpu_s()
        seconds = asyncio.run(send(settings, source, port))
        cpu_s = _cpu_s() - cpu_before + float(process.stdout.readline())
    if not filecmp.cmp(source, target, shallow=False):
        raise SystemExit("The stream's copy differs from its source.")
    return seconds, cpu_s


def time_qemu_img(source: Path, target: Path, cache: str) -> tuple[float, float]:
    """One run of qemu-img: seconds, and seconds of CPU."""
    touch_memory(source.stat().st_size)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", cache, str(source), str(target)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def touch_memory(byte_count: int) -> None:
    """Have the kernel own that much free memory, in pages that were used just now."""
    with mmap.mmap(-1, byte_count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, byte_count, mmap.PAGESIZE):
            memory[at] = 1


def compare(settings: Settings, pairs: int, folder: Path) -> dict[str, object]:
    """Time both in turns; the first turn warms the page cache and is left out."""
    source, target = folder / "source.raw", folder / "target.raw"
    with source.open("wb") as file:
        for _ in range(settings.disk_bytes >> 20):
            file.write(os.urandom(1 << 20))
    kinds = ("unsafe", "stream", "writeback")
    times: dict[str, list[float]] = {what: [] for kind in kinds for what in (kind, f"{kind}_cpu")}
    for turn in range(1 + pairs):
        taken: dict[str, float] = {}
        for what in kinds:
            os.sync()  # what the last run left dirty is not this one's to write back
            if what == "stream":
                seconds, cpu_s = time_stream(settings, source, target)
            else:
                seconds, cpu_s = time_qemu_img(source, target, what)
            taken |= {what: seconds, f"{what}_cpu": cpu_s}
            target.unlink()
        if turn:
            for what, value in taken.items():
                times[what].append(value)
    gb = settings.disk_bytes / 1e9
    return {
        **dataclasses.asdict(settings),
        "pairs": pairs,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "stream_gb_per_s": round(gb / statistics.median(times["stream"]), 2),
        "stream_cpu_s_per_gb": round(statistics.median(times["stream_cpu"]) / gb, 2),
        "qemu_img_cpu_s_per_gb": round(statistics.median(times["unsafe_cpu"]) / gb, 2),
        "qemu_img_gb_per_s": round(gb / statistics.median(times["unsafe"]), 2),
        "qemu_img_flushed_gb_per_s": round(gb / statistics.median(times["writeback"]), 2),
        "ratio": round(_ratio(times["unsafe"], times["stream"]), 2),
        "ratio_flushed": round(_ratio(times["writeback"], times["stream"]), 2),
        "seconds": {what: [round(one, 3) for one in many] for what, many in times.items()},
    }


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Disk channels beside qemu-img convert.")
    parser.add_argument("--bytes", type=int, default=1 << 30, help="size of the disk")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the bulk copy")
    parser.add_argument("--chunk", type=int, default=1 << 20, help="bytes of one read")
    parser.add_argument("--clear", action="store_true", help="without encryption")
    parser.add_argument("--folder", type=Path, help="where the files are; they are removed afterwards")
    parser.add_argument("--figures", type=Path, default=Path("out/disk_stream.json"))
    parser.add_argument("--receive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive is not None:
        asyncio.run(receive(Settings(**json.loads(given.settings)), given.receive))
        return
    settings = Settings(given.bytes, given.channels, given.threads, given.chunk, not given.clear)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        figures = compare(settings, given.pairs, Path(folder))
    given.figures.parent.mkdir(parents=True, exist_ok=True)
    given.figures.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

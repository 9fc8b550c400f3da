"""What a disk's bytes prove when no guest runs on them, and how fast qemu-img copies the same disk.

The extent is read on this machine, past everything that has moved it: the fsync checker's records in partition 3, and
the file of random bytes in the root, whose blocks nobody has touched since the image was made.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from images.fsync_check import FsyncCheck, check_area
from images.root_disk_layout import Layout

FILLER = "/var/filler"
PEER_RUNS = 3
_TIMEOUT_S = 60.0
_PIECE_BYTES = 1 << 20
_ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


class ProofFailed(Exception):
    """A tool that the proof needs didn't work."""


async def acknowledged_records(extent: Path, acknowledged: int) -> FsyncCheck:
    """The fsync checker's records. Raises as images.fsync_check.check_area."""
    return await asyncio.to_thread(check_area, extent, acknowledged)


async def filler_is_whole(extent: Path, layout: Layout) -> bool:
    """Whether the root's random bytes have the SHA-256 that lies beside them. :raises ProofFailed: e2fsprogs."""
    return await asyncio.to_thread(_filler_is_whole, extent, layout)


async def qemu_img_ms(source: Path, target: Path, runs: int = PEER_RUNS) -> float:
    """How long qemu-img takes to convert the raw disk to a fresh raw file: the median, in ms. The files are deleted.

    A guest may run on the disk (-U).

    :raises ProofFailed: it doesn't work.
    """
    taken = [await asyncio.to_thread(_convert, source, target) for _ in range(runs)]
    return sorted(taken)[runs // 2]


def allocated_bytes(extent: Path) -> int:
    """What the file takes on its file system (stat(2), st_blocks)."""
    return extent.stat().st_blocks * 512


def data_bytes(extent: Path) -> int:
    """What of the file isn't a hole (lseek(2), SEEK_DATA)."""
    total = end = 0
    with extent.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += end - start
    return total


def _convert(source: Path, target: Path) -> float:
    try:
        began_s = time.monotonic()
        _run("qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", str(source), str(target))
        return (time.monotonic() - began_s) * 1000
    finally:
        target.unlink(missing_ok=True)


def _filler_is_whole(extent: Path, layout: Layout) -> bool:
    place = f"{extent}?offset={layout.root.offset_bytes}"
    said = _run("debugfs", "-R", f"cat {FILLER}.sha256", place).split()
    command = (_tool("debugfs"), "-R", f"cat {FILLER}", place)
    digest = hashlib.sha256()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while data := process.stdout.read(_PIECE_BYTES):
            digest.update(data)
    return bool(said) and said[0].decode("ascii", "replace") == digest.hexdigest()


def _run(tool: str, *arguments: str) -> bytes:
    try:
        done = subprocess.run((_tool(tool), *arguments), capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProofFailed(f"{tool} isn't done after {_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise ProofFailed(f"{tool}: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout


def _tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ADMIN_FOLDERS}")
    if path is None:
        raise ProofFailed(f"there is no {name} on this machine")
    return path

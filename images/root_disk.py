"""Builds the guest's root disk: `python -m images.root_disk` makes `out/guest/root-256.raw`.

    images.build ──> vmlinuz, initrd.img ──┐
    syslinux ──────> boot loader ──────────┼─> FAT partition ─┐
    settings ──────> syslinux.cfg ─────────┘                  ├─> raw disk [─> qcow2]
    busybox, init, filler ──mke2fs -d──────> ext4 partition ──┤
                             the fsync checker's partition ───┘

A machine that boots from it needs no kernel from outside: BIOS, boot loader, kernel, and a root that is really on the
disk. No root is needed, and nothing is mounted: every tool writes into the file at its partition's offset. A second
build with the same inputs does nothing.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from images.build import DEFAULT_FOLDER, GuestImage, build_guest
from images.cpio import read_file
from images.errors import DiskBuildError, ImageError, ToolMissing
from images.packages import file_digest, write_file
from images.root_disk_layout import MIB, Layout, layout_of, master_boot_record
from images.root_disk_settings import boot_loader_config, root_disk_command_line

DiskImageFormat = Literal["raw", "qcow2"]
Say = Callable[[str], None]

FILLER_MIB_DEFAULT = 256
CHECK_MIB_DEFAULT = 64
FREE_MIB_DEFAULT = 32
_ROOT_OVERHEAD_MIB = 24  # the journal, tables, busybox
_TOOL_TIMEOUT_S = 120.0
_SOURCE_FOLDER = Path(__file__).resolve().parent
_INPUTS = ("root_disk.py", "root_disk_layout.py", "root_disk_settings.py", "cmdline.py")
_BOOT_CODE = Path("/usr/lib/syslinux/mbr/mbr.bin")
_TOOLS = {
    "syslinux": "syslinux",
    "mcopy": "mtools",
    "mkfs.fat": "dosfstools",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
}
_ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # in no ordinary user's PATH
_DISK_ID = 0x56505844
_FAT_ID = "56505844"
_EXT4_UUID = "56505844-0000-4000-8000-000000000002"
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "sbin", "sys", "tmp", "var")
_CONFIG_NAME = "::syslinux.cfg"


@dataclass(frozen=True)
class DiskOptions:
    """What is on the disk.

    :ivar filler_mib: incompressible bytes in a file of the root, /var/filler: something for a migration to move
    :ivar check_mib: size of the fsync checker's partition
    :ivar free_mib: what stays free in the root
    :ivar format: "qcow2" is converted from the raw disk at the end
    """

    filler_mib: int = FILLER_MIB_DEFAULT
    check_mib: int = CHECK_MIB_DEFAULT
    free_mib: int = FREE_MIB_DEFAULT
    format: DiskImageFormat = "raw"

    @property
    def layout(self) -> Layout:
        """Where its partitions lie. :raises ValueError: sizes that can't be."""
        if min(self.filler_mib, self.free_mib) < 0:
            raise ValueError("a size can't be negative")
        return layout_of(self.filler_mib + self.free_mib + _ROOT_OVERHEAD_MIB, self.check_mib)


def build_root_disk(
    folder: Path = DEFAULT_FOLDER,
    options: DiskOptions = DiskOptions(),
    say: Say = lambda _line: None,
    *,
    force: bool = False,
) -> Path:
    """Makes the disk in the folder, if it isn't there already; answers its path.

    Blocks for some seconds. Copy it before a guest runs on it: what has changed is made again by the next build.

    :raises ImageError: it can't be built; a disk that was there before is untouched.
    :raises ValueError: sizes that can't be.
    :raises OSError: the folder can't be written.
    """
    layout = options.layout
    guest = build_guest(folder, say=say)
    suffix = "" if options.check_mib == CHECK_MIB_DEFAULT else f"-{options.check_mib}"
    disk = folder / f"root-{options.filler_mib}{suffix}.{options.format}"
    stamp = disk.with_suffix(disk.suffix + ".stamp.json")
    inputs = _digest(guest, options)
    raw: Path | None = None
    if options.format == "qcow2":
        raw = build_root_disk(folder, replace(options, format="raw"), say, force=force)
        inputs += json.dumps(_state_of(raw))
    if not force and _is_current(disk, stamp, inputs):
        say(f"root disk is up to date: {disk}")
        return disk
    with tempfile.TemporaryDirectory(dir=folder, prefix=".root-disk-") as name:
        made = Path(name) / disk.name
        if raw is None:
            _make_disk(made, layout, guest, options, Path(name))
        else:
            _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made))
        stamp.unlink(missing_ok=True)
        made.replace(disk)
    write_file(stamp, json.dumps({"inputs": inputs, "state": _state_of(disk)}).encode())
    say(f"made {disk} ({disk.stat().st_size >> 20} MiB, {disk.stat().st_blocks >> 11} MiB of them taken)")
    return disk


def set_command_line(disk: Path, command_line: str, layout: Layout | None = None) -> None:
    """Replaces the kernel command line on a raw disk that no guest runs on.

    :raises ImageError: the boot partition can't be written.
    :raises ValueError: a command line that isn't one printable line.
    """
    offset = (layout or DiskOptions().layout).boot.offset_bytes
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        config.write(boot_loader_config(command_line))
        config.flush()
        _run("mcopy", "-o", "-i", f"{disk}@@{offset}", config.name, _CONFIG_NAME)


def copy_disk(disk: Path, target: Path) -> None:
    """Copies a disk with its holes. :raises ImageError: it can't be copied."""
    _run("cp", "--sparse=always", "--reflink=auto", "--", str(disk), str(target))


def _digest(guest: GuestImage, options: DiskOptions) -> str:
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode())
    for path in (*(_SOURCE_FOLDER / name for name in _INPUTS), guest.kernel, guest.initrd):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def _state_of(disk: Path) -> list[int]:
    """Changes whenever somebody writes to it; reading it all at each look would take longer than it is worth."""
    status = disk.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _is_current(disk: Path, stamp: Path, inputs: str) -> bool:
    try:
        return bool(json.loads(stamp.read_text()) == {"inputs": inputs, "state": _state_of(disk)})
    except (FileNotFoundError, ValueError):
        return False


def _make_disk(disk: Path, layout: Layout, guest: GuestImage, options: DiskOptions, work: Path) -> None:
    if not _BOOT_CODE.exists():
        raise ToolMissing(str(_BOOT_CODE), "syslinux-common")
    with disk.open("wb") as target:
        target.truncate(layout.size_bytes)
        target.write(master_boot_record(layout, _BOOT_CODE.read_bytes(), _DISK_ID))
    _make_boot_partition(disk, layout, guest, work)
    tree = work / "tree"
    _make_tree(tree, guest, options.filler_mib)
    root = layout.root
    extended = f"offset={root.offset_bytes},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    # A journal of 4 MiB, small inode tables: the root holds a dozen files.
    features = ("-J", "size=4", "-N", "1024", "-m", "0", "-L", "root", "-U", _EXT4_UUID)
    size = f"{root.size_bytes >> 10}k"
    _run("mke2fs", "-q", "-F", "-t", "ext4", *features, "-E", extended, "-d", str(tree), str(disk), size)


def _make_boot_partition(disk: Path, layout: Layout, guest: GuestImage, work: Path) -> None:
    boot = layout.boot
    place = f"{disk}@@{boot.offset_bytes}"
    sector, size_kib = boot.offset_bytes // 512, boot.size_bytes >> 10
    fat = ("-F", "16", "-n", "BOOT", "-i", _FAT_ID, "-h", str(sector), "--offset", str(sector))
    _run("mkfs.fat", *fat, str(disk), str(size_kib))
    config = work / "syslinux.cfg"
    config.write_text(boot_loader_config(root_disk_command_line()))
    _run("mcopy", "-i", place, str(guest.kernel), "::vmlinuz")
    _run("mcopy", "-i", place, str(guest.initrd), "::initrd.img")
    _run("mcopy", "-i", place, str(config), _CONFIG_NAME)
    _run("syslinux", "--install", "--offset", str(boot.offset_bytes), str(disk))


def _make_tree(tree: Path, guest: GuestImage, filler_mib: int) -> None:
    """The root's files. The programs are those of the initial file system."""
    for name in ("", *_FOLDERS):
        (tree / name).mkdir()
    archive = guest.initrd.read_bytes()
    for path, content in (
        ("sbin/init", read_file(archive, "init")),
        ("bin/busybox", read_file(archive, "bin/busybox")),
    ):
        (tree / path).write_bytes(content)
        (tree / path).chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "bin/ping").symlink_to("busybox")
    (tree / "bin/fsync-checker").symlink_to("../sbin/init")
    digest = hashlib.sha256()
    source = random.Random(_DISK_ID)
    with (tree / "var/filler").open("wb") as filler:
        for _ in range(filler_mib):
            piece = source.randbytes(MIB)
            digest.update(piece)
            filler.write(piece)
    (tree / "var/filler.sha256").write_text(f"{digest.hexdigest()}  /var/filler\n")


def _run(tool: str, *arguments: str) -> None:
    path = shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_ADMIN_FOLDERS}")
    if path is None:
        raise ToolMissing(tool, _TOOLS.get(tool, tool))
    # mtools refuses a partition whose size isn't a whole number of tracks, which nothing has had for decades.
    environment = {**os.environ, "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}
    command: Sequence[str] = (path, *arguments)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DiskBuildError(tool, f"not done after {_TOOL_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise DiskBuildError(tool, done.stderr.strip() or done.stdout.strip())


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 when the disk is there."""
    parser = argparse.ArgumentParser(
        prog="python -m images.root_disk",
        description="Builds the guest's disk with a boot loader and a root.",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="its folder (%(default)s)")
    parser.add_argument(
        "--filler-mib", type=int, default=FILLER_MIB_DEFAULT, help="random bytes (%(default)s)"
    )
    parser.add_argument(
        "--check-mib", type=int, default=CHECK_MIB_DEFAULT, help="area of the fsync checker (%(default)s)"
    )
    parser.add_argument("--format", choices=("raw", "qcow2"), default="raw", help="(%(default)s)")
    parser.add_argument("--force", action="store_true", help="build although nothing changed")
    parsed = parser.parse_args(arguments)
    options = DiskOptions(parsed.filler_mib, parsed.check_mib, format=parsed.format)
    try:
        build_root_disk(parsed.out, options, lambda line: print(line, flush=True), force=parsed.force)
    except (ImageError, OSError, ValueError) as error:
        print(f"error: the root disk was not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

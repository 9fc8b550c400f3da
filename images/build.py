"""Builds the guest: `python -m images.build` makes `out/guest/vmlinuz` and `out/guest/initrd.img`.

    Debian's kernel package ──> vmlinuz, unmodified
                           └──> the few modules that the guest's devices need ─┐
    Debian's static busybox ──> the shell                                       ├─> newc cpio ─> gzip ─> initrd.img
    init.c, stamper.c ──gcc──> /init, one static program                       ─┘

No root is needed, and nothing is done where the inputs are those of the last build: neither apt nor
gcc is then asked. Downloads are kept in `cache/`; `--refresh` asks the archive for newer ones.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from images import cpio, kernel_modules
from images.errors import CompileError, ImageError, PackageError, ToolMissing
from images.packages import PackageCache, file_digest, find_dependency, read_members, write_file

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "out" / "guest"

_SOURCE_FOLDER = Path(__file__).resolve().parent
_PROGRAM_SOURCES = (
    "cpu_exerciser.c",
    "fsync_checker.c",
    "init.c",
    "network.c",
    "ping.c",
    "root_file_system.c",
    "stamper.c",
)
_INPUTS = (*_PROGRAM_SOURCES, "guest.h", "build.py", "cpio.py", "kernel_modules.py", "packages.py")
_COMPILER_OPTIONS = ("-static", "-O2", "-s", "-Wall", "-Wextra", "-pthread")
_COMPILE_TIMEOUT_S = 120
_KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
_KERNEL_PACKAGE_PATTERN = r"linux-image-[0-9].*-cloud-amd64"
_BUSYBOX_PACKAGE = "busybox-static"
_FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "sys", "tmp")
_STAMP = "stamp.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class GuestImage:
    """The two files that QEMU starts the guest from."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True)
class BuildOptions:
    """:ivar force: build although nothing changed. :ivar refresh: ask the archive for newer packages, then build."""

    force: bool = False
    refresh: bool = False


def build_guest(
    folder: Path = DEFAULT_FOLDER, options: BuildOptions = BuildOptions(), say: Say = lambda _line: None
) -> GuestImage:
    """Makes the guest's kernel and initial file system in the folder, if they are not there already.

    Blocks (a first build takes seconds, most of them the download); two builds at once wait for each other.

    :param say: takes one line for each thing that is done.
    :raises ImageError: it can't be built; an image that was there before is untouched.
    :raises OSError: the folder can't be written.
    """
    image = GuestImage(folder / "vmlinuz", folder / "initrd.img")
    inputs = _digest_inputs()
    demanded = options.force or options.refresh
    # First without the lock: who may only read the folder can still use what is there.
    if not demanded and _is_current(folder, image, inputs):
        say(f"guest image is up to date: {folder}")
        return image
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        if not demanded and _is_current(folder, image, inputs):
            say(f"guest image was made meanwhile: {folder}")
            return image
        kernel_package, busybox_package = _get_packages(PackageCache(folder / "cache"), options.refresh, say)
        say("compiling the guest's program")
        init = _compile()
        say(f"packing {kernel_package.name} and {busybox_package.name}")
        kernel, modules = _read_kernel(kernel_package)
        initrd = _pack(init, _read_busybox(busybox_package), modules)
        (folder / _STAMP).unlink(missing_ok=True)
        write_file(image.kernel, kernel)
        write_file(image.initrd, initrd)
        _write_stamp(folder, image, inputs)
        say(f"made {image.kernel} ({len(kernel) >> 10} KiB) and {image.initrd} ({len(initrd) >> 10} KiB)")
    return image


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest_inputs() -> str:
    digest = hashlib.sha256()
    for name in _INPUTS:
        content = (_SOURCE_FOLDER / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _is_current(folder: Path, image: GuestImage, inputs: str) -> bool:
    try:
        stamp = json.loads((folder / _STAMP).read_text())
        return bool(stamp == _describe(image, inputs))
    except (FileNotFoundError, ValueError):
        return False


def _describe(image: GuestImage, inputs: str) -> dict[str, str]:
    return {"inputs": inputs, "kernel": file_digest(image.kernel), "initrd": file_digest(image.initrd)}


def _write_stamp(folder: Path, image: GuestImage, inputs: str) -> None:
    write_file(folder / _STAMP, json.dumps(_describe(image, inputs), indent=1).encode())


def _get_packages(cache: PackageCache, refresh: bool, say: Say) -> tuple[Path, Path]:
    kernel = None if refresh else cache.load("kernel")
    busybox = None if refresh else cache.load("busybox")
    if kernel is None:
        name = find_dependency(_KERNEL_META_PACKAGE, _KERNEL_PACKAGE_PATTERN)
        say(f"downloading {name}")
        kernel = cache.fetch("kernel", name)
    if busybox is None:
        say(f"downloading {_BUSYBOX_PACKAGE}")
        busybox = cache.fetch("busybox", _BUSYBOX_PACKAGE)
    return kernel, busybox


def _compile() -> bytes:
    compiler = shutil.which("gcc")
    if compiler is None:
        raise ToolMissing("gcc", "gcc libc6-dev")
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "init"
        sources = [str(_SOURCE_FOLDER / source) for source in _PROGRAM_SOURCES]
        try:
            done = subprocess.run(
                [compiler, *_COMPILER_OPTIONS, "-o", str(program), *sources],
                capture_output=True,
                text=True,
                timeout=_COMPILE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CompileError(f"not done after {_COMPILE_TIMEOUT_S} s") from error
        if done.returncode != 0:
            raise CompileError(done.stderr.strip())
        return program.read_bytes()


def _read_kernel(package: Path) -> tuple[bytes, dict[str, bytes]]:
    members = read_members(package, lambda path: path.startswith("boot/vmlinuz-") or path.endswith(".ko"))
    kernels = [content for path, content in members.items() if path.startswith("boot/vmlinuz-")]
    modules = {
        kernel_modules.module_name(PurePosixPath(path).name): content
        for path, content in members.items()
        if path.endswith(".ko")
    }
    if len(kernels) != 1:
        raise PackageError(package.name, f"holds {len(kernels)} kernels instead of one")
    return kernels[0], modules


def _read_busybox(package: Path) -> bytes:
    members = read_members(package, lambda path: PurePosixPath(path).name == "busybox" and "bin/" in path)
    if len(members) != 1:
        raise PackageError(package.name, f"holds {len(members)} busybox programs instead of one")
    return next(iter(members.values()))


def _pack(init: bytes, busybox: bytes, modules: dict[str, bytes]) -> bytes:
    load_list = kernel_modules.load_list(modules)
    needed = sorted({name for line in load_list.splitlines() for name in line.split()[3:]})
    entries = [
        *(cpio.folder(path) for path in _FOLDERS),
        # The kernel opens it for init before anything is mounted.
        cpio.character_device("dev/console", 5, 1),
        cpio.program("init", init),
        cpio.program("bin/busybox", busybox),
        cpio.link("bin/sh", "busybox"),
        cpio.plain_file("lib/modules/load", load_list.encode()),
        *(cpio.plain_file(f"lib/modules/{name}.ko", modules[name]) for name in needed),
    ]
    return gzip.compress(cpio.write_archive(entries), mtime=0)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 when the image is there."""
    parser = argparse.ArgumentParser(
        prog="python -m images.build", description="Builds the small Linux guest."
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder of the image (%(default)s)")
    parser.add_argument("--force", action="store_true", help="build although nothing changed")
    parser.add_argument("--refresh", action="store_true", help="ask the package archive for newer packages")
    parsed = parser.parse_args(arguments)
    try:
        build_guest(
            parsed.out, BuildOptions(parsed.force, parsed.refresh), lambda line: print(line, flush=True)
        )
    except (ImageError, OSError) as error:
        print(f"error: the guest image was not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

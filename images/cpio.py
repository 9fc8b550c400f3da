"""Pure: no I/O, no clock, no logging.

Writes and reads a newc cpio archive, the form in which the kernel takes an initial root file system.

It is written here, and not by the cpio tool, because an ordinary user may then put a device node into
it, and because the same entries give the same bytes on every machine.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import gzip
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from images.errors import CpioError

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
ALIGN_BYTES = 4
# The kernel unpacks any length, but reads in pages; other tools expect whole 512-byte blocks.
BLOCK_BYTES = 512
_HEADER_BYTES = len(MAGIC) + 13 * 8
_GZIP_MAGIC = b"\x1f\x8b"
_FIELD_MAX = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One file, folder, link or device. `mode` holds type and permissions, as in stat(2)."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> Entry:
    """A folder that all may read."""
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, content: bytes) -> Entry:
    """A regular file that all may run."""
    return Entry(path, stat.S_IFREG | 0o755, content)


def plain_file(path: str, content: bytes) -> Entry:
    """A regular file that all may read."""
    return Entry(path, stat.S_IFREG | 0o644, content)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """A character device that only root may open."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def write_archive(entries: Iterable[Entry]) -> bytes:
    """The whole archive, padded to blocks. Entries keep their order: a folder must precede what it holds.

    Owner is root, times are 0 and inode numbers count up, so that equal entries give equal bytes.

    :raises CpioError: a path that is absolute, empty, used twice or the format's own end mark, one whose folder
        was not given before it, or content that is too long.
    """
    archive = bytearray()
    folders = {""}
    seen: set[str] = set()
    for inode, entry in enumerate(entries, start=1):
        _check(entry, folders, seen)
        seen.add(entry.path)
        if stat.S_ISDIR(entry.mode):
            folders.add(entry.path)
        _append(archive, entry, inode)
    _append(archive, Entry(TRAILER, 0), 0)
    _pad(archive, BLOCK_BYTES)
    return bytes(archive)


def read_file(archive: bytes, path: str) -> bytes:
    """The content of one file of an archive, which may be packed with gzip.

    :raises CpioError: it is no such archive, or has no such file.
    """
    if archive[:2] == _GZIP_MAGIC:
        try:
            archive = gzip.decompress(archive)
        except (OSError, EOFError, zlib.error) as error:
            raise CpioError(path, "the archive can't be unpacked") from error
    position = 0
    while archive[position : position + len(MAGIC)] == MAGIC:
        header = archive[position + len(MAGIC) : position + _HEADER_BYTES]
        try:
            size, name_bytes = (int(header[index * 8 : index * 8 + 8], 16) for index in (6, 11))
        except ValueError as error:
            raise CpioError(path, "the archive has a header that can't be read") from error
        start = _aligned(position + _HEADER_BYTES + name_bytes)
        name = archive[position + _HEADER_BYTES : position + _HEADER_BYTES + name_bytes - 1]
        if name == path.encode():
            return archive[start : start + size]
        if name == TRAILER.encode():
            break
        position = _aligned(start + size)
    raise CpioError(path, "not in the archive")


def _aligned(position: int) -> int:
    return position + -position % ALIGN_BYTES


def _check(entry: Entry, folders: set[str], seen: set[str]) -> None:
    path = entry.path
    if not path or path.startswith("/") or path == TRAILER or "\0" in path:
        raise CpioError(path, "not a relative path")
    if path in seen:
        raise CpioError(path, "given twice")
    if path.rpartition("/")[0] not in folders:
        raise CpioError(path, "its folder was not given before it")
    if len(entry.content) > _FIELD_MAX:
        raise CpioError(path, "longer than 4 GiB")


def _append(archive: bytearray, entry: Entry, inode: int) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode,
        entry.mode,
        0,  # user
        0,  # group
        links,
        0,  # time
        len(entry.content),
        0,  # the archive's own device: major, minor
        0,
        *entry.device,
        len(name),
        0,  # checksum: unused in this variant
    )
    archive += MAGIC + b"".join(b"%08X" % field for field in fields) + name
    _pad(archive, ALIGN_BYTES)
    archive += entry.content
    _pad(archive, ALIGN_BYTES)


def _pad(archive: bytearray, unit_bytes: int) -> None:
    archive += bytes(-len(archive) % unit_bytes)

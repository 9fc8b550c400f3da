"""The archive writer: what the kernel reads back is what was put in."""

import stat

import pytest

from images import cpio
from images.errors import CpioError

ENTRIES = [
    cpio.folder("bin"),
    cpio.program("bin/tool", b"#!/bin/true\n"),
    cpio.link("bin/sh", "tool"),
    cpio.folder("dev"),
    cpio.character_device("dev/console", 5, 1),
    cpio.plain_file("empty", b""),
]


def read_archive(archive: bytes) -> dict[str, tuple[dict[str, int], bytes]]:
    """Reads a newc archive by the format's description: name -> (fields, content)."""
    names = "ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check"
    found: dict[str, tuple[dict[str, int], bytes]] = {}
    offset = 0
    while True:
        assert offset % 4 == 0
        assert archive[offset : offset + 6] == b"070701"
        values = [int(archive[offset + 6 + i * 8 : offset + 14 + i * 8], 16) for i in range(13)]
        fields = dict(zip(names.split(), values, strict=True))
        name_end = offset + 110 + fields["namesize"]
        assert archive[name_end - 1] == 0
        name = archive[offset + 110 : name_end - 1].decode()
        start = (name_end + 3) // 4 * 4
        end = start + fields["filesize"]
        if name == "TRAILER!!!":
            assert not archive[end:].strip(b"\0")
            return found
        found[name] = (fields, archive[start:end])
        offset = (end + 3) // 4 * 4


def test_write_archive_of_every_kind_reads_back_the_same() -> None:
    archive = cpio.write_archive(ENTRIES)

    found = read_archive(archive)

    assert len(archive) % 512 == 0
    assert list(found) == [entry.path for entry in ENTRIES]
    for entry in ENTRIES:
        fields, content = found[entry.path]
        assert fields["mode"] == entry.mode
        assert content == entry.content
        assert (fields["uid"], fields["gid"], fields["mtime"]) == (0, 0, 0)
    console = found["dev/console"][0]
    assert stat.S_ISCHR(console["mode"])
    assert (console["rdevmajor"], console["rdevminor"]) == (5, 1)
    assert found["bin/sh"][1] == b"tool"
    inodes = [fields["ino"] for fields, _content in found.values()]
    assert len(set(inodes)) == len(inodes), "equal inode numbers would make hard links"


def test_write_archive_twice_gives_equal_bytes() -> None:
    assert cpio.write_archive(ENTRIES) == cpio.write_archive(list(ENTRIES))


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        ([cpio.plain_file("/etc/x", b"")], "/etc/x"),
        ([cpio.plain_file("", b"")], ""),
        ([cpio.plain_file("TRAILER!!!", b"")], "TRAILER!!!"),
        ([cpio.plain_file("a\0b", b"")], "a\0b"),
        ([cpio.plain_file("a", b""), cpio.plain_file("a", b"")], "a"),
        ([cpio.plain_file("etc/x", b"")], "etc/x"),
        ([cpio.plain_file("etc", b""), cpio.plain_file("etc/x", b"")], "etc/x"),
    ],
)
def test_write_archive_of_a_bad_entry_names_it(entries: list[cpio.Entry], path: str) -> None:
    with pytest.raises(CpioError) as caught:
        cpio.write_archive(entries)

    assert caught.value.path == path

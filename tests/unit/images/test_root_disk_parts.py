"""The root disk's layout and settings, and reading back what a cpio archive holds."""

import gzip
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import cpio
from images.errors import CpioError
from images.guest_output import (
    FsyncBegin,
    FsyncState,
    FsyncWrong,
    parse_fsync_begin,
    parse_fsync_state,
    parse_fsync_wrong,
    parse_heartbeat,
)
from images.root_disk_layout import MIB, layout_of, master_boot_record
from images.root_disk_settings import (
    FsyncSettings,
    address_word,
    boot_loader_config,
    root_disk_command_line,
)


def test_partitions_follow_one_another_on_whole_mib() -> None:
    layout = layout_of(100, 8)
    ends = [(one.offset_bytes, one.end_bytes) for one in (layout.boot, layout.root, layout.check)]

    assert ends[0][0] == MIB
    assert ends[0][1] == ends[1][0]
    assert ends[1][1] == ends[2][0]
    assert layout.size_bytes == ends[2][1]
    assert all(value % MIB == 0 for pair in ends for value in pair)


def test_boot_record_names_the_partitions_and_keeps_the_code() -> None:
    layout = layout_of(100, 8)
    record = master_boot_record(layout, b"code", 7)
    entries = [struct.unpack_from("<B3xB3xII", record, 446 + 16 * number) for number in range(4)]

    assert (len(record), record[:4], record[-2:]) == (512, b"code", b"\x55\xaa")
    assert [(status, kind) for status, kind, _first, _count in entries] == [
        (0x80, 0x0E),
        (0, 0x83),
        (0, 0xDA),
        (0, 0),
    ]
    assert entries[2][2:] == (layout.check.offset_bytes // 512, 8 * 2048)


def test_layout_and_record_refuse_what_cannot_be() -> None:
    for sizes in ((0, 1), (1, 0), (1 << 21, 1)):
        with pytest.raises(ValueError, match="can't be"):
            layout_of(*sizes)
    with pytest.raises(ValueError, match="441"):
        master_boot_record(layout_of(1, 1), bytes(441), 0)


def test_command_line_has_the_root_and_the_checker() -> None:
    words = root_disk_command_line(
        "quiet", FsyncSettings(rate="max", mode="dsync"), ("vpx.ip=1.2.3.4/8",)
    ).split()

    assert words == [
        "quiet",
        "vpx.root=/dev/vda2",
        "fsync.device=/dev/vda3",
        "fsync.rate=max",
        "fsync.check_mib_s=4",
        "fsync.mode=dsync",
        "vpx.ip=1.2.3.4/8",
    ]
    assert "fsync" not in root_disk_command_line("quiet", FsyncSettings(device=""))
    assert "  APPEND a b\n" in boot_loader_config("a b")
    with pytest.raises(ValueError, match="printable"):
        boot_loader_config("a\nLABEL b")


@pytest.mark.parametrize(
    "settings",
    [
        FsyncSettings(device="vda3"),
        FsyncSettings(device="/dev/a b"),
        FsyncSettings(rate=-1),
        FsyncSettings(rate=True),
        FsyncSettings(check_mib_s=1 << 20),
    ],
)
def test_fsync_settings_that_the_guest_does_not_take_are_refused(settings: FsyncSettings) -> None:
    with pytest.raises(ValueError, match="must be"):
        settings.words()


def test_address_word_needs_an_address_with_its_prefix() -> None:
    assert address_word("10.0.0.5/24") == "vpx.ip=10.0.0.5/24"
    assert address_word("10.0.0.5/24", "10.0.0.1") == "vpx.ip=10.0.0.5/24,10.0.0.1"
    for text in ("10.0.0.5", "10.0.0.5/33", "ten"):
        with pytest.raises(ValueError, match=r"prefix|netmask|Expected 4 octets"):
            address_word(text)


@given(st.dictionaries(st.sampled_from(["a", "b", "init"]), st.binary(max_size=50)), st.booleans())
def test_files_written_to_an_archive_are_read_back(files: dict[str, bytes], packed: bool) -> None:
    archive = cpio.write_archive([cpio.program(name, content) for name, content in files.items()])
    archive = gzip.compress(archive) if packed else archive

    for name, content in files.items():
        assert cpio.read_file(archive, name) == content
    with pytest.raises(CpioError):
        cpio.read_file(archive, "none")


@given(st.binary(max_size=300))
def test_archive_that_is_none_is_refused_without_another_error(content: bytes) -> None:
    for archive in (content, b"\x1f\x8b" + content, b"070701" + content):
        with pytest.raises(CpioError):
            cpio.read_file(archive, "init")


def test_fsync_lines_are_read_and_others_passed_over() -> None:
    begin = "FSYNC BEGIN area=00000000000000ff slots=1023 found=7 wrong=1\n"
    state = "FSYNC acknowledged=5 checked=4 wrong=3 passes=2 longest_ms=1\r\n"
    wrong = "FSYNC WRONG slot=60 expected=61 holds=zero found=0\n"

    assert parse_fsync_begin(begin) == FsyncBegin(255, 1023, 7, 1)
    assert parse_fsync_state(state) == FsyncState(5, 4, 3, 2, 1)
    assert parse_fsync_wrong(wrong) == FsyncWrong(60, 61, "zero", 0)
    for line in (begin, state, wrong, "FSYNC ackn", ""):
        assert parse_heartbeat(line) is None
        assert sum(parse(line) is not None for parse in (parse_fsync_begin, parse_fsync_state)) <= 1

"""A disk's descriptor: what is rendered is read again, and what could name another file is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.datastore import disk_descriptor
from hostd.datastore.disk_descriptor import (
    CAPACITY_MAX_BYTES,
    EAGER,
    FORMATS,
    LAZY,
    QCOW2,
    THIN,
    DiskDescriptor,
    DiskFormat,
    extent_name,
    parse,
    qcow2_capacity,
    render,
)
from runtime.faults import InvalidDiskFormat

MIB = 1 << 20
NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters='/"\\'), min_size=1, max_size=40
)


def text_of(disk_format: DiskFormat = THIN) -> str:
    name = extent_name("web01.vmdk", disk_format)
    return render(DiskDescriptor(8 * MIB, disk_format, name, 0x1234)).decode()


@given(
    mib=st.integers(1, CAPACITY_MAX_BYTES // MIB),
    disk_format=st.sampled_from(FORMATS),
    name=NAMES,
    content_id=st.integers(0, 0xFFFFFFFF),
)
def test_parse_of_render_is_the_same(mib: int, disk_format: DiskFormat, name: str, content_id: int) -> None:
    descriptor = DiskDescriptor(mib * MIB, disk_format, extent_name(f"{name}.vmdk", disk_format), content_id)
    assert parse(render(descriptor)) == descriptor


@given(st.binary(max_size=400))
def test_parse_of_any_bytes_is_a_descriptor_or_a_fault(content: bytes) -> None:
    for text in (content, b"# Disk DescriptorFile\n" + content):
        try:
            found = parse(text)
        except InvalidDiskFormat:
            continue
        assert "/" not in found.extent_name


@given(st.data())
def test_parse_of_a_damaged_descriptor_never_leaves_its_folder(data: st.DataObject) -> None:
    content = bytearray(text_of(data.draw(st.sampled_from(FORMATS))).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(content))
    except InvalidDiskFormat:
        return
    assert "/" not in found.extent_name
    assert found.extent_name not in ("", ".", "..")
    assert disk_descriptor.check_capacity(found.capacity_bytes)


def test_render_says_what_vmware_tools_read() -> None:
    thin, lazy, eager, image = (text_of(one) for one in (THIN, LAZY, EAGER, QCOW2))
    assert 'RW 16384 VMFS "web01-flat.vmdk"' in thin
    assert 'ddb.thinProvisioned = "1"' in thin
    assert "thinProvisioned" not in lazy + eager + image
    assert 'ddb.eagerlyScrub = "1"' in eager
    assert 'RW 16384 SPARSE "web01.qcow2"' in image


def test_parse_takes_a_descriptor_as_esxi_writes_it() -> None:
    text = (
        '# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID=8a1b2c3d\nparentCID=ffffffff\ncreateType="vmfs"\n\n'
        '# Extent description\nRW 2097152 VMFS "db-flat.vmdk"\n\n# The Disk Data Base \n#DDB\n\n'
        'ddb.adapterType = "lsilogic"\nddb.geometry.cylinders = "130"\nddb.thinProvisioned = "1"\n'
        'ddb.uuid = "60 00 C2 9f 1d 5e"\nddb.virtualHWVersion = "14"\n'
    )
    assert parse(text.encode()) == DiskDescriptor(1 << 30, THIN, "db-flat.vmdk", 0x8A1B2C3D)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Disk DescriptorFile", "# Disk"),
        ("version=1", "version=2"),
        ("CID=00001234", "CID=xyz"),
        ("parentCID=ffffffff", "parentCID=00000001"),
        ("RW 16384", "RW 16385"),
        ("RW 16384", "RW 0"),
        ("RW 16384", "RW 999999999999999"),
        ("RW 16384", "RDONLY 16384"),
        ('"web01-flat.vmdk"', '"/etc/shadow"'),
        ('"web01-flat.vmdk"', '"../web02/web02-flat.vmdk"'),
        ('"web01-flat.vmdk"', '".."'),
        ('"web01-flat.vmdk"', '""'),
        ('"web01-flat.vmdk"', '"web01-flat.vmdk" 128'),
        ('"web01-flat.vmdk"', '"a-flat.vmdk"\nRW 16384 VMFS "b-flat.vmdk"'),
        ("VMFS", "SPARSE"),
        ("VMFS", "ZERO"),
        ("#DDB", 'parentFileNameHint="/etc/shadow"'),
        ("#DDB", "version=2"),
        ("#DDB", "what is this"),
    ],
)
def test_parse_refuses(old: str, new: str) -> None:
    text = text_of()
    assert old in text
    with pytest.raises(InvalidDiskFormat) as caught:
        parse(text.replace(old, new).encode(), "[local] web01/web01.vmdk")
    assert caught.value.path == "[local] web01/web01.vmdk"


def header(version: int = 3, backing: int = 0, encryption: int = 0, incompatible: int = 0) -> bytes:
    first = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, 16, 8 * MIB, encryption)
    return first + bytes(72 - len(first)) + struct.pack(">Q", incompatible) + bytes(24)


def test_qcow2_capacity_whole_image_is_told() -> None:
    assert qcow2_capacity(header()) == 8 * MIB
    assert qcow2_capacity(header(version=2)[:72]) == 8 * MIB


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"QFI\xfb",
        bytes(104),
        header(version=4),
        header(backing=512),
        header(encryption=1),
        header(incompatible=0b100),
        header(incompatible=0b10),
        header()[:76],
    ],
)
def test_qcow2_capacity_image_that_needs_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidDiskFormat):
        qcow2_capacity(content)

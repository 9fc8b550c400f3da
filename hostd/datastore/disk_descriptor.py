"""Pure: no I/O, no clock, no logging. The text of a virtual disk's descriptor (.vmdk), and a qcow2 image's header.

    # Disk DescriptorFile
    version=1
    CID=6a1e33c0
    parentCID=ffffffff
    createType="vmfs"

    # Extent description
    RW 2097152 VMFS "web01-flat.vmdk"        sectors of 512 bytes; SPARSE "web01.qcow2" for an image

    # The Disk Data Base
    ddb.thinProvisioned = "1"                thin; ddb.eagerlyScrub = "1": eager zeroed; neither: lazy zeroed

The form is that of VMware's "Virtual Disk Format 5.0" specification. Here a descriptor has one extent, which lies
beside it under a name made from its own (`extent_name`): one that could name another file would be a way to read and
write that file through a guest. For the same reason a qcow2 image may have neither a backing file nor an external data
file (QEMU, docs/interop/qcow2.txt). Both may come from anywhere: whatever isn't of this form is refused.
"""

import re
import struct
from dataclasses import dataclass
from typing import TypeAlias

from proto.vim.v1 import vm_config_pb2
from runtime.faults import InvalidDiskFormat

DiskFormat: TypeAlias = vm_config_pb2.DiskFormat.ValueType
THIN = vm_config_pb2.DISK_FORMAT_THIN
LAZY = vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED
EAGER = vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED
QCOW2 = vm_config_pb2.DISK_FORMAT_QCOW2
FORMATS = (THIN, LAZY, EAGER, QCOW2)
THICK_FORMATS = (LAZY, EAGER)

SUFFIX = ".vmdk"
EXTENT_SUFFIXES = ("-flat.vmdk", ".qcow2")
MAX_FILE_BYTES = 64 * 1024
SECTOR_BYTES = 512
CAPACITY_STEP_BYTES = 1 << 20
CAPACITY_MAX_BYTES = 62 << 40  # VMFS's own largest file
QCOW2_HEADER_BYTES = 104
SIGNATURE = b"# Disk DescriptorFile"
_NO_PARENT = "ffffffff"
_MAX_LINES = 1000
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+([0-9]{1,15})\s+([A-Z0-9]+)\s+"([^"]*)"(?:\s+([0-9]{1,15}))?')
_ENTRY = re.compile(r'([A-Za-z][A-Za-z0-9._:-]{0,127})\s*=\s*(?:"([^"]*)"|([^"\s]+))')
_CONTENT_ID = re.compile(r"[0-9a-f]{1,8}")


@dataclass(frozen=True)
class DiskDescriptor:
    """What a descriptor says. `content_id` (CID) is 32 bits, chosen anew for each disk that is made."""

    capacity_bytes: int
    format: DiskFormat
    extent_name: str
    content_id: int


def extent_name(descriptor_name: str, disk_format: DiskFormat) -> str:
    """The name of the extent beside a descriptor: "root.vmdk" -> "root-flat.vmdk", or "root.qcow2"."""
    stem = descriptor_name.removesuffix(SUFFIX)
    return f"{stem}.qcow2" if disk_format == QCOW2 else f"{stem}-flat{SUFFIX}"


def check_capacity(capacity_bytes: int) -> bool:
    """Whether a disk can have it: a multiple of 1 MiB up to 62 TiB."""
    in_range = CAPACITY_STEP_BYTES <= capacity_bytes <= CAPACITY_MAX_BYTES
    return in_range and capacity_bytes % CAPACITY_STEP_BYTES == 0


def render(descriptor: DiskDescriptor) -> bytes:
    """The descriptor's text; `parse` gives it back."""
    image = descriptor.format == QCOW2
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={descriptor.content_id & 0xFFFFFFFF:08x}",
        f"parentCID={_NO_PARENT}",
        f'createType="{"custom" if image else "vmfs"}"',
        "",
        "# Extent description",
        f'RW {descriptor.capacity_bytes // SECTOR_BYTES} {"SPARSE" if image else "VMFS"} "{descriptor.extent_name}"',
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.adapterType = "virtio"',
    ]
    if image:
        lines.append('ddb.vpx.imageFormat = "qcow2"')
    if descriptor.format == THIN:
        lines.append('ddb.thinProvisioned = "1"')
    if descriptor.format == EAGER:
        lines.append('ddb.eagerlyScrub = "1"')
    return ("\n".join(lines) + "\n").encode()


def parse(content: bytes, path: str = "") -> DiskDescriptor:
    """What the text says. `path` goes into the fault.

    :raises InvalidDiskFormat: it isn't a descriptor, or one of a disk that isn't supported here; the message says why.
    """
    if len(content) > MAX_FILE_BYTES or not content.startswith(SIGNATURE):
        raise InvalidDiskFormat("The file isn't a disk's descriptor.", path)
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidDiskFormat("The descriptor isn't UTF-8.", path) from error
    if len(lines) > _MAX_LINES:
        raise InvalidDiskFormat(f"The descriptor has more than {_MAX_LINES} lines.", path)
    entries: dict[str, str] = {}
    extents: list[re.Match[str]] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if match := _EXTENT.fullmatch(text):
            extents.append(match)
        elif match := _ENTRY.fullmatch(text):
            value = match[2] if match[2] is not None else match[3]
            if entries.setdefault(match[1].lower(), value) != value:
                raise InvalidDiskFormat(f"Line {number} of the descriptor contradicts an earlier one.", path)
        else:
            raise InvalidDiskFormat(f"Line {number} of the descriptor has no known form.", path)
    return _described(entries, extents, path)


def _described(entries: dict[str, str], extents: list[re.Match[str]], path: str) -> DiskDescriptor:
    if entries.get("version") != "1":
        raise InvalidDiskFormat("The descriptor's version isn't 1.", path)
    content_id = entries.get("cid", "").lower()
    if not _CONTENT_ID.fullmatch(content_id):
        raise InvalidDiskFormat("The descriptor has no content id.", path)
    if entries.get("parentcid", _NO_PARENT).lower() != _NO_PARENT or "parentfilenamehint" in entries:
        raise InvalidDiskFormat("The disk stands on a parent disk: it can't be used by itself.", path)
    if len(extents) != 1:
        raise InvalidDiskFormat(f"The disk has {len(extents)} extents, not one.", path)
    access, sectors, kind, name, offset = extents[0].groups()
    if access != "RW" or int(offset or 0) or kind not in ("VMFS", "FLAT", "SPARSE"):
        raise InvalidDiskFormat("The disk's extent isn't a plain one that can be written.", path)
    capacity_bytes = int(sectors) * SECTOR_BYTES
    if not check_capacity(capacity_bytes):
        message = f"A capacity of {capacity_bytes} bytes isn't a multiple of 1 MiB up to 62 TiB."
        raise InvalidDiskFormat(message, path)
    if not name or "/" in name or name in (".", "..") or not name.isprintable():
        raise InvalidDiskFormat("The extent's name isn't the name of a file beside the descriptor.", path)
    disk_format = LAZY
    if kind == "SPARSE":
        if entries.get("ddb.vpx.imageformat") != "qcow2":
            raise InvalidDiskFormat("The disk's sparse extent isn't a qcow2 image: import it.", path)
        disk_format = QCOW2
    elif entries.get("ddb.thinprovisioned") == "1":
        disk_format = THIN
    elif entries.get("ddb.eagerlyscrub") == "1":
        disk_format = EAGER
    return DiskDescriptor(capacity_bytes, disk_format, name, int(content_id, 16))


def qcow2_capacity(header: bytes, path: str = "") -> int:
    """The capacity, in bytes, that the first QCOW2_HEADER_BYTES of an image say.

    :raises InvalidDiskFormat: it isn't a qcow2 image, is encrypted or damaged, or isn't whole in itself.
    """
    if len(header) < 72 or header[:4] != b"QFI\xfb":
        raise InvalidDiskFormat("The file isn't a qcow2 image.", path)
    version, backing_offset, backing_length, _, size_bytes, encryption = struct.unpack(
        ">IQIIQI", header[4:36]
    )
    if version not in (2, 3):
        raise InvalidDiskFormat(f"The image is of version {version} of qcow2.", path)
    if backing_offset or backing_length:
        raise InvalidDiskFormat("The image has a backing file: it can't be used by itself.", path)
    if encryption:
        raise InvalidDiskFormat("The image is encrypted.", path)
    if version == 3:
        if len(header) < 80:
            raise InvalidDiskFormat("The image ends within its header.", path)
        (incompatible,) = struct.unpack(">Q", header[72:80])
        if incompatible & 0b10:
            raise InvalidDiskFormat("The image is marked as damaged.", path)
        if incompatible & 0b100:
            raise InvalidDiskFormat("The image has an external data file: it can't be used by itself.", path)
    return int(size_bytes)

"""Pure: no I/O, no clock, no logging.

Where everything lies on the guest's root disk, and its master boot record.

    1 MiB   partition 1   FAT    boot loader, kernel, initrd, settings      active
            partition 2   ext4   root
            partition 3   raw    area of the fsync checker

Source: the record's form as every BIOS and Linux's block/partitions/msdos.c read it.
"""

import struct
from dataclasses import dataclass

MIB = 1 << 20
SECTOR_BYTES = 512
BOOT_CODE_BYTES = 440
BOOT_MIB = 24
_ALIGN_MIB = 1
_ENTRY = struct.Struct("<B3sB3sII")
_ACTIVE = 0x80
# Cylinder, head and sector end at 8 GiB; these values send every reader to the sector numbers beside them.
_NO_CHS = b"\xfe\xff\xff"
_TYPE_FAT16_LBA = 0x0E
_TYPE_LINUX = 0x83
_TYPE_NO_FILE_SYSTEM = 0xDA


@dataclass(frozen=True)
class Partition:
    """A run of bytes on the disk, in whole MiB."""

    offset_bytes: int
    size_bytes: int

    @property
    def end_bytes(self) -> int:
        """Where it ends."""
        return self.offset_bytes + self.size_bytes


@dataclass(frozen=True)
class Layout:
    """The disk's partitions in their order."""

    boot: Partition
    root: Partition
    check: Partition

    @property
    def size_bytes(self) -> int:
        """Of the whole disk: a multiple of 1 MiB."""
        return self.check.end_bytes


def layout_of(root_mib: int, check_mib: int) -> Layout:
    """A disk with a root and an area of these sizes.

    :raises ValueError: a size under 1 MiB, or a disk beyond what the record can describe (2 TiB).
    """
    if root_mib < 1 or check_mib < 1 or BOOT_MIB + root_mib + check_mib >= 1 << 21:
        raise ValueError(f"a root of {root_mib} MiB and an area of {check_mib} MiB can't be")
    boot = Partition(_ALIGN_MIB * MIB, BOOT_MIB * MIB)
    root = Partition(boot.end_bytes, root_mib * MIB)
    return Layout(boot, root, Partition(root.end_bytes, check_mib * MIB))


def master_boot_record(layout: Layout, boot_code: bytes, disk_id: int) -> bytes:
    """The disk's first sector.

    :param boot_code: loads the active partition's first sector.
    :raises ValueError: more code than there is room for.
    """
    if len(boot_code) > BOOT_CODE_BYTES:
        raise ValueError(f"the boot code has {len(boot_code)} bytes, and {BOOT_CODE_BYTES} are there for it")
    entries = (
        _entry(layout.boot, _TYPE_FAT16_LBA, _ACTIVE),
        _entry(layout.root, _TYPE_LINUX),
        _entry(layout.check, _TYPE_NO_FILE_SYSTEM),
        bytes(_ENTRY.size),
    )
    code = boot_code.ljust(BOOT_CODE_BYTES, b"\0")
    return code + struct.pack("<IH", disk_id, 0) + b"".join(entries) + b"\x55\xaa"


def _entry(partition: Partition, kind: int, status: int = 0) -> bytes:
    first, count = partition.offset_bytes // SECTOR_BYTES, partition.size_bytes // SECTOR_BYTES
    return _ENTRY.pack(status, _NO_CHS, kind, _NO_CHS, first, count)

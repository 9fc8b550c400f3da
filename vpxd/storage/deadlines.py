"""How long a host may work on a file. Pure: no I/O, no clock, no logging.

A host that died is noticed in seconds by its connection; a deadline only ends what hangs. So it is chosen for the
slowest disk that still counts as one, and grows with what has to be written.
"""

import struct

from vpxd.inventory.values import DiskFormat

SLOWEST_BYTES_PER_S = 8 * 1024 * 1024
LEAST_S = 60.0
UNKNOWN_IMAGE_S = 3600.0
HEAD_BYTES = 512
_QCOW2 = struct.Struct(
    ">4sI16xQ"
)  # magic, version, backing file, cluster bits, virtual size: docs/interop/qcow2.txt
_QCOW2_MAGIC = b"QFI\xfb"
_OTHER_MAGICS = (b"KDMV", b"COWD", b"# Di", b"conectix", b"vhdxfile", b"<<< ")  # vmdk, vhd, vhdx, vdi


def transfer_s(size_bytes: int) -> float:
    """For so many bytes to be written, or sent by a slow client, in seconds."""
    return LEAST_S + size_bytes / SLOWEST_BYTES_PER_S


def creation_s(capacity_bytes: int, disk_format: DiskFormat) -> float:
    """For an empty disk, in seconds: only eager zeroing writes it; taking its blocks costs some of that."""
    if disk_format is DiskFormat.THICK_EAGER_ZEROED:
        return transfer_s(capacity_bytes)
    if disk_format is DiskFormat.THICK_LAZY_ZEROED:
        return transfer_s(capacity_bytes // 16)
    return LEAST_S


def import_s(head: bytes, size_bytes: int, capacity_bytes: int) -> float:
    """For an image to become a disk, in seconds.

    :param head: the image's first bytes; a qcow2 image says there what it unpacks to.
    :param size_bytes: of the image's file.
    :param capacity_bytes: asked for; 0: the image's own.
    """
    work_bytes = max(size_bytes, capacity_bytes)
    if len(head) >= _QCOW2.size and head.startswith(_QCOW2_MAGIC):
        return transfer_s(max(work_bytes, int(_QCOW2.unpack_from(head)[2])))
    if head.startswith(_OTHER_MAGICS):
        return max(transfer_s(work_bytes), UNKNOWN_IMAGE_S)
    return transfer_s(work_bytes)

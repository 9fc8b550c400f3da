"""Pure: no I/O, no clock, no logging.

The formats of virtual disks in the words that people type and read, and the disks that `vpx vm create` is given.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from proto.vim.v1 import vm_config_pb2
from vpxd.cli.quantities import parse_size


class DiskFormatWord(StrEnum):
    """What is typed for a format."""

    THIN = "thin"
    LAZY = "lazy"
    EAGER = "eager"
    QCOW2 = "qcow2"


NUMBER_OF: Mapping[str, vm_config_pb2.DiskFormat.ValueType] = MappingProxyType(
    {
        DiskFormatWord.THIN: vm_config_pb2.DISK_FORMAT_THIN,
        DiskFormatWord.LAZY: vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED,
        DiskFormatWord.EAGER: vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED,
        DiskFormatWord.QCOW2: vm_config_pb2.DISK_FORMAT_QCOW2,
    }
)
FORMAT_TEXT: Mapping[int, str] = MappingProxyType(
    {
        vm_config_pb2.DISK_FORMAT_UNSPECIFIED: "-",
        vm_config_pb2.DISK_FORMAT_THIN: "thin",
        vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED: "thick lazy zeroed",
        vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED: "thick eager zeroed",
        vm_config_pb2.DISK_FORMAT_QCOW2: "qcow2",
    }
)


def format_text(number: int) -> str:
    """ "thick lazy zeroed"; a format of a later version is its number."""
    return FORMAT_TEXT.get(number, f"format {number}")


def parse_new_disks(vm_name: str, texts: Iterable[str]) -> list[vm_config_pb2.VirtualDisk]:
    """The disks of a new VM, each "SIZE[:FORMAT[:DATASTORE]]", or the path of a disk that is there.

    Without a datastore a disk lies in the VM's home, under a name that the host chooses.

    :raises ValueError: it is neither; the message says what is taken.
    """
    disks: list[vm_config_pb2.VirtualDisk] = []
    numbers: dict[str, int] = {}
    for text in texts:
        if text.startswith("["):
            disks.append(vm_config_pb2.VirtualDisk(path=text))
            continue
        size, _, rest = text.partition(":")
        word, _, datastore = rest.partition(":")
        word = word or DiskFormatWord.THIN
        if word not in NUMBER_OF or word == DiskFormatWord.QCOW2:
            raise ValueError(f"{text!r}: a new disk's format is thin, lazy or eager")
        disk = vm_config_pb2.VirtualDisk(capacity_bytes=parse_size(size), format=NUMBER_OF[word])
        if datastore:
            number = numbers.get(datastore, 0)
            numbers[datastore] = number + 1
            stem = f"{vm_name}_{number}" if number else vm_name
            disk.path = f"[{datastore}] {vm_name}/{stem}.vmdk"
        disks.append(disk)
    return disks

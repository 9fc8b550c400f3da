"""A guest's disks on QEMU's command line."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vmx.guest.test_command_line import DESCRIPTORS, LINUX, QEMU, SPEC
from vmx.disk.contract import DiskFormat
from vmx.guest.command_line import build_command_line
from vmx.guest.disk_devices import DISK_KEYS, DiskDevice, arguments
from vmx.guest.errors import GuestSpecError

ROOT = DiskDevice(2000, Path("/vmfs/a, b=c/web01-flat.vmdk"), DiskFormat.THIN)
DATA = DiskDevice(2003, Path("/vmfs/web01/data.qcow2"), DiskFormat.QCOW2)
THICK = DiskDevice(2015, Path("/vmfs/web01/thick-flat.vmdk"), DiskFormat.THICK_EAGER_ZEROED)


def values(words: list[str], option: str) -> list[dict[str, Any]]:
    return [
        json.loads(value)
        for name, value in itertools.pairwise(words)
        if name == option and value.startswith("{")
    ]


def test_arguments_golden() -> None:
    words = arguments([ROOT], boots_from_disk=True)
    assert values(words, "-blockdev") == [
        {
            "driver": "raw",
            "node-name": "disk-2000",
            "discard": "unmap",
            "file": {
                "driver": "file",
                "node-name": "file-2000",
                "filename": "/vmfs/a, b=c/web01-flat.vmdk",
                "aio": "threads",
                "cache": {"direct": False, "no-flush": False},
                "discard": "unmap",
                "auto-read-only": False,
                "locking": "on",
            },
        }
    ]
    assert values(words, "-device") == [
        {
            "driver": "virtio-blk-pci",
            "id": "disk-2000-device",
            "drive": "disk-2000",
            "serial": "2000",
            "addr": "0x2",
            "discard": True,
            "write-zeroes": True,
            "bootindex": 1,
        }
    ]


def test_arguments_only_the_first_disk_boots_and_only_without_a_kernel() -> None:
    for spec, expected in ((SPEC, [1, None]), (LINUX, [None, None])):
        words = build_command_line(QEMU, replace(spec, disks=(DATA, ROOT)), DESCRIPTORS)
        assert [device.get("bootindex") for device in values(words, "-device")] == expected


def test_arguments_address_follows_from_the_key_alone() -> None:
    devices = [DiskDevice(key, Path(f"/vmfs/{key}"), DiskFormat.THIN) for key in DISK_KEYS]
    addresses = {
        device["id"]: device["addr"]
        for device in values(arguments(devices, boots_from_disk=False), "-device")
    }
    assert len(set(addresses.values())) == len(DISK_KEYS)
    (alone,) = values(arguments([THICK], boots_from_disk=False), "-device")
    assert addresses["disk-2015-device"] == alone["addr"] == "0x11"


def test_arguments_the_device_does_not_depend_on_the_format() -> None:
    devices = []
    for disk_format in DiskFormat:
        words = arguments([replace(ROOT, format=disk_format)], boots_from_disk=False)
        devices += values(words, "-device")
    assert all(device == devices[0] for device in devices)


def test_arguments_a_thick_disk_keeps_its_blocks_and_an_image_has_no_backing() -> None:
    thick, image = values(arguments([THICK, DATA], boots_from_disk=False), "-blockdev")
    assert thick["discard"] == thick["file"]["discard"] == "ignore"
    assert image["driver"] == "qcow2"
    assert image["backing"] is None
    assert "backing" not in thick


@pytest.mark.parametrize(
    ("key", "path"),
    [(1999, "/a"), (2016, "/a"), (2000, "a"), (2000, "/a\nb"), (2000, "nbd:host:1"), (2000, "json:{}")],
)
def test_disk_device_unfit_is_refused(key: int, path: str) -> None:
    with pytest.raises(GuestSpecError) as refused:
        DiskDevice(key, Path(path), DiskFormat.THIN)
    assert refused.value.field == "disks"


@pytest.mark.parametrize("other", [replace(ROOT, extent_path=Path("/other")), replace(ROOT, key=2001)])
def test_guest_spec_two_disks_alike_are_refused(other: DiskDevice) -> None:
    with pytest.raises(GuestSpecError, match="disks"):
        replace(SPEC, disks=(ROOT, other))


def test_cache_of_a_disk_that_arrives_with_the_guest_is_kept() -> None:
    nodes = values(arguments([replace(ROOT, arrives=True), THICK], boots_from_disk=True), "-blockdev")
    assert [node["file"].get("drop-cache", True) for node in nodes] == [False, True]

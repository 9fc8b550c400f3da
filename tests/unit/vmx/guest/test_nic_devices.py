"""NICs on QEMU's command line."""

from pathlib import Path

import pytest

from vmx.guest.errors import GuestSpecError
from vmx.guest.nic_devices import NIC_KEYS, NicDevice, nic_arguments

MAC = "02:00:00:00:00:01"


def test_connected_nic_has_a_backend_of_two_sockets() -> None:
    nic = NicDevice(4001, MAC, Path("/run/a,b/port.sock"), Path("/run/switch.sock"))
    assert nic_arguments((nic,)) == [
        "-netdev",
        "dgram,id=net-4001,local.type=unix,local.path=/run/a,,b/port.sock,"
        "remote.type=unix,remote.path=/run/switch.sock",
        "-device",
        f"virtio-net-pci,id=nic-4001,netdev=net-4001,mac={MAC},romfile=,addr=0x13",
    ]


def test_disconnected_nic_is_the_same_device_without_a_backend() -> None:
    assert nic_arguments((NicDevice(4001, MAC),)) == [
        "-device",
        f"virtio-net-pci,id=nic-4001,mac={MAC},romfile=,addr=0x13",
    ]


def test_every_nic_has_an_address_of_its_own_whatever_others_there_are() -> None:
    every = nic_arguments(tuple(NicDevice(key, MAC) for key in NIC_KEYS))[1::2]
    addresses = [int(words.rpartition("addr=")[2], 16) for words in every]
    assert len(set(addresses)) == len(NIC_KEYS)
    assert all(0x10 < address < 0x1F for address in addresses)
    alone = nic_arguments((NicDevice(4009, MAC),))[1]
    assert alone == every[-1]


@pytest.mark.parametrize(
    ("key", "mac", "port", "switch"),
    [
        (3999, MAC, None, None),
        (4010, MAC, None, None),
        (4000, "03:00:00:00:00:01", None, None),
        (4000, "02:00:00:00:00:01,romfile=x", None, None),
        (4000, MAC, "/port", None),
        (4000, MAC, None, "/switch"),
        (4000, MAC, "port", "/switch"),
        (4000, MAC, "/a\nb", "/switch"),
        (4000, MAC, "/" + "x" * 107, "/switch"),
    ],
)
def test_unfit_nic_is_refused_by_name(key: int, mac: str, port: str | None, switch: str | None) -> None:
    with pytest.raises(GuestSpecError) as caught:
        NicDevice(key, mac, Path(port) if port else None, Path(switch) if switch else None)
    assert caught.value.field == f"nics[{key}]"

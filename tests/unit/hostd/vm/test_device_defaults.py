"""What a configuration leaves open of its devices is filled in once, and never changes what it says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.vm import devices
from hostd.vm.device_defaults import Surroundings, with_device_defaults
from proto.vim.v1.vm_config_pb2 import DISK_FORMAT_THIN, NetworkAdapter, VirtualDisk, VmConfig
from runtime.faults import InvalidVmConfig
from runtime.ondisk.datastore_path import DatastorePath

MIB = 1 << 20
HOME = DatastorePath.parse("[shared] web")


def completed(
    config: VmConfig,
    *,
    names: tuple[str, ...] = (),
    macs: tuple[str, ...] = (),
    present: VmConfig | None = None,
) -> VmConfig:
    counter = itertools.count(1)
    source = Surroundings(
        HOME, names, macs, lambda count: next(counter).to_bytes(count, "big"), present or VmConfig()
    )
    return with_device_defaults(config, source)


def test_paths_go_around_what_is_in_the_home_and_in_the_configuration() -> None:
    config = VmConfig(
        name="web", disks=[VirtualDisk(), VirtualDisk(), VirtualDisk(path="[shared] web/web_2.vmdk")]
    )
    found = completed(config, names=("web-flat.vmdk",))
    assert [disk.path for disk in found.disks] == [
        "[shared] web/web_1.vmdk",
        "[shared] web/web_3.vmdk",
        "[shared] web/web_2.vmdk",
    ]
    assert completed(config, names=("web.qcow2", "web_1.vmdk")).disks[0].path == "[shared] web/web_3.vmdk"


def test_disk_that_the_vm_has_keeps_what_is_not_said() -> None:
    had = VirtualDisk(key=2003, path="[local] a.vmdk", capacity_bytes=MIB, format=DISK_FORMAT_THIN)
    found = completed(VmConfig(name="web", disks=[VirtualDisk(key=2003)]), present=VmConfig(disks=[had]))
    assert list(found.disks) == [had]


def test_key_of_a_device_that_goes_is_not_given_again_in_the_same_change() -> None:
    had = VmConfig(disks=[VirtualDisk(key=2000, path="[local] a.vmdk")], nics=[NetworkAdapter(key=4000)])
    found = completed(VmConfig(name="web", disks=[VirtualDisk()], nics=[NetworkAdapter()]), present=had)
    assert (found.disks[0].key, found.nics[0].key) == (2001, 4001)


def test_mac_is_local_unicast_and_not_one_of_the_hosts() -> None:
    config = VmConfig(
        name="web", nics=[NetworkAdapter(), NetworkAdapter(mac="02:00:00:00:00:03"), NetworkAdapter()]
    )
    found = completed(config, macs=("02:00:00:00:00:01",))
    assert [nic.mac[-2:] for nic in found.nics] == ["02", "03", "04"]


def test_more_devices_than_keys_are_refused() -> None:
    with pytest.raises(InvalidVmConfig):
        completed(VmConfig(name="web", disks=[VirtualDisk()] * 17))
    with pytest.raises(InvalidVmConfig):
        completed(VmConfig(name="web", nics=[NetworkAdapter()] * 11))


@given(
    keys=st.lists(
        st.one_of(st.just(0), st.sampled_from(devices.DISK_KEYS)),
        max_size=12,
        unique_by=lambda key: key or object(),
    )
)
def test_any_mixture_of_keys_becomes_a_valid_configuration(keys: list[int]) -> None:
    disks = [VirtualDisk(key=key, capacity_bytes=MIB, format=DISK_FORMAT_THIN) for key in keys]
    config = VmConfig(name="web", disks=disks)
    found = completed(config)
    devices.validate(found)
    assert len(found.disks) == len(keys)
    assert {key for key in keys if key} <= {disk.key for disk in found.disks}
    assert [disk.key for disk in found.disks] == sorted(disk.key for disk in found.disks)
    assert list(config.disks) == disks
    assert completed(found) == found

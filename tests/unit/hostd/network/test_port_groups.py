"""Port groups: how they're named, and where NICs go."""

from pathlib import Path

import pytest

from hostd.network.port_groups import Networks, PortGroup, parse_port_groups
from proto.vim.v1.vm_config_pb2 import VmConfig
from runtime.faults import CannotAccessNetwork

NETWORKS = Networks("esx01", Path("/run/net"), (PortGroup("VM Network", 100), PortGroup("Lab", 200)))
UUID = "12345678-9abc-4def-8123-456789abcdef"


def config(network: str, *, connected: bool = True) -> VmConfig:
    made = VmConfig(uuid=UUID)
    made.nics.add(key=4003, mac="02:00:00:00:00:01", network=network, connected=connected)
    return made


def test_names_may_hold_spaces_and_equals_signs() -> None:
    assert parse_port_groups(["VM Network=100", "a = b = 7"]) == (
        PortGroup("VM Network", 100),
        PortGroup("a = b", 7),
    )


@pytest.mark.parametrize(
    "entries",
    [["VM Network"], ["=1"], ["a=0"], ["a=16777216"], ["a=-1"], ["a=x"], ["a=1", "a=2"], ["a=1", "b=1"]],
)  # fmt: skip
def test_bad_port_groups_are_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must be|has"):
        parse_port_groups(entries)


def test_connected_nic_goes_to_its_segments_switch() -> None:
    (place,) = NETWORKS.places(config("Lab"))
    assert place.key == 4003
    assert place.port_path == "/run/net/200/12345678-9abc-4003.sock"
    assert place.switch_path == "/run/net/200/switch.sock"


def test_disconnected_nic_goes_nowhere_wherever_its_network_is() -> None:
    (place,) = NETWORKS.places(config("Elsewhere", connected=False))
    assert (place.key, place.port_path, place.switch_path) == (4003, "", "")


def test_connected_nic_without_its_port_group_is_refused() -> None:
    with pytest.raises(CannotAccessNetwork) as caught:
        NETWORKS.places(config("Elsewhere"))
    assert (caught.value.network, caught.value.host, caught.value.nic) == ("Elsewhere", "esx01", "ethernet3")

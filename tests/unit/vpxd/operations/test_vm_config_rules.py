"""A VM's configuration before a host is asked, and the forms on the wire and in the database."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vpxd
from runtime.daemon.settings import SettingsError
from runtime.faults import InvalidVmConfig
from vpxd.config import Config
from vpxd.inventory.values import (
    Boot,
    HostCapability,
    HostDatastore,
    HostInfo,
    VmConfig,
)
from vpxd.operations.vm_config import require_valid, with_defaults
from vpxd.wire import (
    host_info_from_json,
    host_info_to_json,
    vm_config_from_json,
    vm_config_to_json,
)

GOOD = VmConfig("", "web01", 1, 512 * 1024**2)
_TEXT = st.text(max_size=30)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"name": "a/b"}, "name"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 256}, "vcpus"),
        ({"ram_bytes": 0}, "ram_bytes"),
        ({"ram_bytes": 3 * 1024**2}, "ram_bytes"),
        ({"ram_bytes": 2**60}, "ram_bytes"),
        ({"uuid": "x"}, "uuid"),
        ({"machine_type": "a\nb"}, "machine_type"),
        ({"annotation": "x" * 5000}, "annotation"),
        ({"boot": Boot("/etc/passwd")}, "boot.kernel"),
        ({"boot": Boot("", "[shared] ../x")}, "boot.initrd"),
        ({"boot": Boot("", "", "a\x00b")}, "boot.kernel_command_line"),
    ],
)
def test_bad_configuration_names_its_property(changes: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidVmConfig) as caught:
        require_valid(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert caught.value.property == name


def test_uuid_is_taken_in_any_form_and_kept_in_one() -> None:
    text = "6F1ED002AB5E42D9AE7C1C3A8E0D9C11"
    assert require_valid(replace(GOOD, uuid=text)).uuid == "6f1ed002-ab5e-42d9-ae7c-1c3a8e0d9c11"


def _host(*machines: str, models: tuple[str, ...] = ("qemu64", "max")) -> HostInfo:
    return HostInfo("u", "h", capability=HostCapability("7", machines, models))


def test_defaults_let_the_vm_go_to_every_host() -> None:
    hosts = [
        _host("pc-q35-7.2", "pc-q35-10.0", "q35"),
        _host("pc-q35-7.2", "pc-q35-7.10", "pc-q35-7.9", "q35"),
    ]
    chosen = with_defaults(GOOD, hosts)
    assert (chosen.machine_type, chosen.cpu_model) == ("pc-q35-7.2", "qemu64")
    assert len(chosen.uuid) == 36
    newest = with_defaults(GOOD, hosts[1:])
    assert newest.machine_type == "pc-q35-7.10"
    named = replace(GOOD, machine_type="pc-q35-7.1", cpu_model="max", uuid="u")
    assert with_defaults(named, hosts) == named
    assert with_defaults(GOOD, [_host("a"), _host("b", models=())]).machine_type == ""


@given(
    st.builds(
        VmConfig,
        uuid=_TEXT,
        name=_TEXT,
        vcpus=st.integers(0, 2**32 - 1),
        ram_bytes=st.integers(0, 2**64 - 1),
        machine_type=_TEXT,
        cpu_model=_TEXT,
        boot=st.builds(Boot, _TEXT, _TEXT, _TEXT),
        annotation=_TEXT,
        change_version=st.integers(0, 2**64 - 1),
    )
)
def test_configuration_is_read_back_from_the_database_as_it_was(config: VmConfig) -> None:
    assert vm_config_from_json(vm_config_to_json(config)) == config


def test_host_info_is_read_back_from_the_database_as_it_was() -> None:
    info = HostInfo("u", "esx01", "a", "b", 1, 2, 3, HostCapability("7", ("m",), ("c",), "tcg", 1, 2))
    info = replace(info, datastores=(HostDatastore("s", "u", 5, 4, accessible=False),), version="1")
    assert host_info_from_json(host_info_to_json(info)) == info


def test_settings_have_their_defaults_and_name_what_is_wrong() -> None:
    config = Config.from_environment({"VPXD_STATE_DIR": "/var/lib/vpxd"})
    assert config.client_dir == Path("/var/lib/vpxd/clients/admin")
    assert config.advertise == config.join_listen == "127.0.0.1:7444"
    assert config.database_url == "sqlite+aiosqlite:////var/lib/vpxd/vpxd.sqlite"
    assert config.heartbeat_s * 4 <= config.heartbeat_timeout_s
    for bad in ({}, {"VPXD_STATE_DIR": "relative"}, {"VPXD_STATE_DIR": "/x", "VPXD_LISTEN": "nonsense"}):
        with pytest.raises(SettingsError):
            Config.from_environment(bad)


def test_version_is_the_projects() -> None:
    project = Path(vpxd.__file__).parents[1] / "pyproject.toml"
    assert f'version = "{vpxd.VERSION}"' in project.read_text()

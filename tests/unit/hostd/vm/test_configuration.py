"""The configuration's rules, and its way through a .vmx file."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.vm import config_file, configuration
from hostd.vm.config_file import VmxEntries
from proto.vim.v1.vm_config_pb2 import Boot, VmConfig
from runtime.faults import InvalidVmConfig

MIB = 1 << 20


def a_config() -> VmConfig:
    return VmConfig(
        uuid="0b9f3b5e-2f0c-4a57-9d63-0d3e5c1f2a10",
        name="web01",
        vcpus=2,
        ram_bytes=512 * MIB,
        machine_type="pc-q35-7.2",
        cpu_model="qemu64,+aes",
        boot=Boot(
            kernel="[shared] images/vmlinuz", initrd="[shared] images/initrd", kernel_command_line='a="b" |c'
        ),
        annotation='lines\nand "quotes" | bars',
        change_version=7,
    )


def through_a_file(config: VmConfig) -> VmConfig:
    content = config_file.render(configuration.to_entries(config))
    return configuration.from_entries(config_file.parse(content))


def test_from_entries_of_to_entries_is_the_same_configuration() -> None:
    assert through_a_file(a_config()) == a_config()


@given(
    annotation=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200),
    vcpus=st.integers(1, configuration.VCPUS_MAX),
    steps=st.integers(8, 1 << 21),
    version=st.integers(0, (1 << 63) - 1),
)
def test_from_entries_of_any_valid_configuration_is_the_same(
    annotation: str, vcpus: int, steps: int, version: int
) -> None:
    config = a_config()
    config.annotation, config.vcpus, config.ram_bytes = annotation, vcpus, steps * 2 * MIB
    config.change_version = version
    assert through_a_file(config) == config


def _set(field: str, value: object) -> Callable[[VmConfig], None]:
    def change(config: VmConfig) -> None:
        target: object = config
        *path, last = field.split(".")
        for name in path:
            target = getattr(target, name)
        setattr(target, last, value)

    return change


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("uuid", ""),
        ("uuid", "0B9F3B5E-2F0C-4A57-9D63-0D3E5C1F2A10"),
        ("uuid", "../../etc"),
        ("name", ""),
        ("name", "x" * 81),
        ("name", "a/b"),
        ("name", ".."),
        ("name", ".hidden"),
        ("name", "a\nb"),
        ("name", " a"),
        ("name", "\N{PILE OF POO}" * 60),
        ("vcpus", 0),
        ("vcpus", 65),
        ("ram_bytes", 0),
        ("ram_bytes", 3 * MIB),
        ("ram_bytes", 64 * MIB + 4096),
        ("ram_bytes", 1 << 50),
        ("machine_type", "q35"),
        ("machine_type", "pc-q35-7.2,accel=kvm"),
        ("cpu_model", "qemu64 -S"),
        ("cpu_model", ""),
        ("boot.kernel", "/etc/shadow"),
        ("boot.kernel", "[shared] ../../etc/shadow"),
        ("boot.kernel", ""),
        ("boot.initrd", "[a"),
        ("boot.kernel_command_line", "a\nb"),
        ("boot.kernel_command_line", "x" * 3000),
        ("annotation", "x" * 5000),
        ("annotation", "\0"),
        ("change_version", 1 << 63),
    ],
)
def test_validate_what_cannot_be_names_the_property(field: str, value: object) -> None:
    config = a_config()
    _set(field, value)(config)
    with pytest.raises(InvalidVmConfig) as caught:
        configuration.validate(config)
    assert caught.value.property == field


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vc.uuid", None),
        ("displayName", None),
        ("numvcpus", "two"),
        ("numvcpus", "-1"),
        ("numvcpus", "٣"),
        ("numvcpus", "9" * 30),
        ("memSize", "999999999999"),
        ("vpx.changeVersion", None),
        ("vpx.machineType", None),
    ],
)
def test_from_entries_bad_entry_is_named(key: str, value: str | None) -> None:
    entries = configuration.to_entries(a_config())
    if value is None:
        del entries[key]
    else:
        entries[key] = value
    with pytest.raises(InvalidVmConfig) as caught:
        configuration.from_entries(VmxEntries(entries))
    assert caught.value.property == key

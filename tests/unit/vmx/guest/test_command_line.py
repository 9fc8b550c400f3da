"""Golden command lines, and what must never reach one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.framework.fake_qemu import CommandLine, split_option
from vmx.guest.command_line import (
    Accelerator,
    GuestDescriptors,
    GuestSpec,
    build_command_line,
    escape_option_value,
)
from vmx.guest.errors import GuestSpecError

QEMU = Path("/usr/bin/qemu-system-x86_64")
DESCRIPTORS = GuestDescriptors(memory_fd=7, qmp_listen_fd=9)
UUID = "564d1f2e-0000-4000-8000-00000000000a"
SPEC = GuestSpec(
    vm_uuid=UUID,
    name="web01",
    vcpus=2,
    ram_bytes=512 << 20,
    machine_type="pc-q35-7.2",
    cpu_model="qemu64",
    accelerator=Accelerator.TCG,
    console_log_path=Path("/vmfs/web01/console.log"),
    heartbeat_log_path=Path("/vmfs/web01/heartbeat.log"),
    run_dir=Path("/run/vmx/a"),
)
LINUX = replace(
    SPEC,
    kernel_path=Path("/vmfs/boot/vmlinuz"),
    initrd_path=Path("/vmfs/boot/initrd.img"),
    kernel_command_line="console=ttyS0 stamper.mib=64",
)

_HEAD = ["-no-user-config", "-nodefaults", "-display", "none", "-msg", "timestamp=on"]
_MACHINE = "pc-q35-7.2,memory-backend=ram0,usb=off,vmport=off,dump-guest-core=off,suppress-vmdesc=on"
_RAM = "memory-backend-file,id=ram0,size=536870912B,mem-path=/proc/self/fd/7,share=on,prealloc=off"
_PORTS = [
    *("-chardev", "socket,id=qmp,fd=9,server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
    "-chardev",
    "socket,id=console,path=/run/vmx/a/console.sock,server=on,wait=off,logfile=/vmfs/web01/console.log,logappend=on",
    *("-device", "isa-serial,index=0,chardev=console"),
    *("-chardev", "file,id=heartbeat,path=/vmfs/web01/heartbeat.log,append=on"),
    *("-device", "isa-serial,index=1,chardev=heartbeat"),
]
_FIRMWARE_ONLY = [
    str(QEMU),
    *("-name", "guest=web01,debug-threads=on", "-uuid", UUID),
    *_HEAD,
    *("-machine", _MACHINE, "-accel", "tcg,thread=multi", "-cpu", "qemu64"),
    *("-smp", "cpus=2,maxcpus=2", "-m", "size=536870912B", "-object", _RAM),
    *_PORTS,
]
_BOOT = [
    *("-kernel", "/vmfs/boot/vmlinuz", "-initrd", "/vmfs/boot/initrd.img"),
    *("-append", "console=ttyS0 stamper.mib=64"),
]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param(SPEC, [*_FIRMWARE_ONLY, "-S"], id="firmware only"),
        pytest.param(LINUX, [*_FIRMWARE_ONLY, *_BOOT, "-S"], id="linux"),
        pytest.param(
            replace(LINUX, incoming=True),
            [*_FIRMWARE_ONLY, *_BOOT, "-incoming", "defer", "-S"],
            id="destination",
        ),
        pytest.param(
            replace(SPEC, accelerator=Accelerator.KVM, cpu_model="Haswell-noTSX,+aes,hle=off"),
            [
                {"tcg,thread=multi": "kvm", "qemu64": "Haswell-noTSX,+aes,hle=off"}.get(word, word)
                for word in [*_FIRMWARE_ONLY, "-S"]
            ],
            id="kvm and cpu features",
        ),
    ],
)
def test_build_command_line_golden(spec: GuestSpec, expected: list[str]) -> None:
    assert build_command_line(QEMU, spec, DESCRIPTORS) == expected


def test_build_command_line_hostile_name_and_paths_stay_single_values() -> None:
    spec = replace(
        LINUX,
        name="a,debug-threads=off,b=c -S",
        run_dir=Path("/run/v,fd=3 'x'"),
        console_log_path=Path("/log,server=off"),
        heartbeat_log_path=Path("/hb,,append=off"),
        kernel_path=Path("/kernel,initrd=/x"),
    )
    line = CommandLine(build_command_line(QEMU, spec, DESCRIPTORS)[1:])
    assert split_option(line.value("-name")) == {"guest": spec.name, "debug-threads": "on"}
    assert line.chardev("console") == {
        "": "socket",
        "id": "console",
        "path": "/run/v,fd=3 'x'/console.sock",
        "server": "on",
        "wait": "off",
        "logfile": "/log,server=off",
        "logappend": "on",
    }
    assert line.chardev("heartbeat")["path"] == "/hb,,append=off"
    assert line.value("-kernel") == "/kernel,initrd=/x"


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_escape_option_value_any_text_comes_back_whole(value: str) -> None:
    option = f"guest={escape_option_value(value)},debug-threads=on"
    assert split_option(option) == {"guest": value, "debug-threads": "on"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vm_uuid", "not-a-uuid"),
        ("vm_uuid", UUID.upper()),
        ("name", ""),
        ("name", "two\nlines"),
        ("name", "nul\0"),
        ("vcpus", 0),
        ("vcpus", 256),
        ("ram_bytes", 0),
        ("ram_bytes", (1 << 20) + 4096),
        ("machine_type", "q35,accel=kvm"),
        ("machine_type", "-help"),
        ("cpu_model", "qemu64,,x"),
        ("cpu_model", "max -S"),
        ("cpu_model", ""),
        ("kernel_path", Path("vmlinuz")),
        ("console_log_path", Path("/two\nlines")),
        ("heartbeat_log_path", Path("relative")),
        ("run_dir", Path("/" + "x" * 120)),
        ("run_dir", Path("/" + "ü" * 50)),
        ("kernel_command_line", "quiet\ninit=/bin/sh"),
    ],
)
def test_guest_spec_unfit_field_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(GuestSpecError) as refused:
        replace(LINUX, **{field: value})  # type: ignore[arg-type]
    assert refused.value.field == field


def test_guest_spec_boot_options_without_kernel_are_refused() -> None:
    with pytest.raises(GuestSpecError, match="kernel_path"):
        replace(SPEC, initrd_path=Path("/initrd"))
    with pytest.raises(GuestSpecError, match="kernel_path"):
        replace(SPEC, kernel_command_line="quiet")

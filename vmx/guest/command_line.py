"""Pure: no I/O, no clock, no logging. QEMU's command line for one guest.

The guest it makes has exactly one piece of memory that matters (a shared memfd that vmx maps too) and no
device that writes guest memory behind the page tracer: no balloon, no display adapter, nothing by default.

    descriptor memory_fd      guest RAM             /proc/self/fd/N as a *named file*: from QEMU 8.1 on
                                                    x-ignore-shared leaves out only such memory
    descriptor qmp_listen_fd  QMP server socket     already listening before QEMU starts: a client can
                                                    connect at once, nobody polls for a socket file
    serial port 0             console               server socket, all output appended to a log file too
    serial port 1             heartbeat             appended to a file

Every guest starts stopped (`-S`), so that the page tracer's userfaultfd can be made before the first
instruction; a destination also waits for its state (`-incoming defer`), which keeps the machine's reset
from writing into memory that the migration has placed.

Names and paths are hostile: a comma in an option's value is doubled (QEMU's option syntax, qemu(1)), all else
that could change the meaning of an option is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmx.guest import disk_devices
from vmx.guest.cpu_model import FixedCpu, cpu_option
from vmx.guest.errors import GuestSpecError
from vmx.guest.nic_devices import NicDevice, nic_arguments

__all__ = ["Accelerator", "GuestDescriptors", "GuestSpec", "build_command_line", "escape_option_value"]

_MIB = 1 << 20
# sizeof(sockaddr_un.sun_path) less the closing zero: unix(7).
_SOCKET_PATH_BYTES = 107
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# "qemu64", "Haswell-noTSX-IBRS,-hle", "host,migratable=on": a model and features, nothing else.
_CPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(,[+-]?[A-Za-z0-9._-]+(=[A-Za-z0-9._-]+)?)*")


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    TCG = "tcg"
    KVM = "kvm"


@dataclass(frozen=True)
class GuestSpec:
    """All that makes up a guest's process, except its descriptors. Checked when it is made.

    `machine_type` is versioned (`pc-q35-7.2`), because the newest machine of two QEMU versions is not one
    machine. Without a kernel it boots from its first disk; without one, only the firmware runs. The sockets lie in
    `run_dir`, which only vmx's user may enter: whoever can connect to them rules the guest.

    :raises GuestSpecError: naming the field that is not fit.
    """

    vm_uuid: str
    name: str
    vcpus: int
    ram_bytes: int
    machine_type: str
    cpu_model: str
    accelerator: Accelerator
    console_log_path: Path
    heartbeat_log_path: Path
    run_dir: Path
    kernel_path: Path | None = None
    initrd_path: Path | None = None
    kernel_command_line: str = ""
    incoming: bool = False
    disks: tuple[disk_devices.DiskDevice, ...] = ()
    nics: tuple[NicDevice, ...] = ()
    cpu: FixedCpu | None = None  # fixed at power-on; None: `cpu_model` as QEMU makes it

    def __post_init__(self) -> None:
        if not _UUID.fullmatch(self.vm_uuid):
            raise GuestSpecError("vm_uuid", f"{self.vm_uuid!r} is not a UUID in its canonical form")
        if not self.name or not self.name.isprintable():
            raise GuestSpecError("name", "must not be empty, and of printable characters only")
        if not 1 <= self.vcpus <= 255:
            raise GuestSpecError("vcpus", f"{self.vcpus} is not between 1 and 255")
        if self.ram_bytes < _MIB or self.ram_bytes % _MIB:
            raise GuestSpecError("ram_bytes", f"{self.ram_bytes} is not a positive multiple of 1 MiB")
        if not _WORD.fullmatch(self.machine_type):
            raise GuestSpecError("machine_type", f"{self.machine_type!r} is not a machine's name")
        if not _CPU_MODEL.fullmatch(self.cpu_model):
            raise GuestSpecError("cpu_model", f"{self.cpu_model!r} is not a CPU model with features")
        disk_devices.check_disks(self.disks)
        self._check_boot()
        self._check_paths()

    def _check_boot(self) -> None:
        if self.kernel_path is None and (self.initrd_path is not None or self.kernel_command_line):
            raise GuestSpecError("kernel_path", "missing, but an initrd or a kernel command line is given")
        if not self.kernel_command_line.isprintable():
            raise GuestSpecError("kernel_command_line", "must be of printable characters only")

    def _check_paths(self) -> None:
        for field in ("console_log_path", "heartbeat_log_path", "run_dir", "kernel_path", "initrd_path"):
            path: Path | None = getattr(self, field)
            if path is None:
                continue
            if not path.is_absolute():
                raise GuestSpecError(field, f"{str(path)!r} is not absolute")
            if not str(path).isprintable():
                raise GuestSpecError(field, "must be of printable characters only")
        for socket_path in (self.qmp_socket_path, self.console_socket_path):
            if len(os.fsencode(socket_path)) > _SOCKET_PATH_BYTES:
                raise GuestSpecError("run_dir", f"too long for a socket's address: {str(self.run_dir)!r}")

    @property
    def qmp_socket_path(self) -> Path:
        """Where QMP listens."""
        return self.run_dir / "qmp.sock"

    @property
    def console_socket_path(self) -> Path:
        """Where the console (serial port 0) listens."""
        return self.run_dir / "console.sock"


@dataclass(frozen=True)
class GuestDescriptors:
    """Descriptors that QEMU finds open, under these numbers, when it starts."""

    memory_fd: int
    qmp_listen_fd: int


def escape_option_value(value: str) -> str:
    """`value` so that it stands as one value inside a comma-separated option of QEMU."""
    return value.replace(",", ",,")


def build_command_line(qemu_binary: Path, spec: GuestSpec, descriptors: GuestDescriptors) -> list[str]:
    """The whole argument vector, program first. It is not for a shell: nothing is quoted."""
    arguments = [str(qemu_binary)]
    arguments += ["-name", f"guest={escape_option_value(spec.name)},debug-threads=on"]
    arguments += ["-uuid", spec.vm_uuid]
    arguments += ["-no-user-config", "-nodefaults", "-display", "none", "-msg", "timestamp=on"]
    # suppress-vmdesc: the device state would end with a description of itself in JSON, for debuggers, which would be
    # written and sent within the stun.
    arguments += [
        "-machine",
        f"{spec.machine_type},memory-backend=ram0,usb=off,vmport=off,dump-guest-core=off,suppress-vmdesc=on",
    ]
    arguments += ["-accel", "tcg,thread=multi" if spec.accelerator is Accelerator.TCG else "kvm"]
    arguments += ["-cpu", cpu_option(spec.cpu_model, spec.cpu)]
    arguments += ["-smp", f"cpus={spec.vcpus},maxcpus={spec.vcpus}"]
    arguments += ["-m", f"size={spec.ram_bytes}B"]
    arguments += [
        "-object",
        f"memory-backend-file,id=ram0,size={spec.ram_bytes}B,"
        f"mem-path=/proc/self/fd/{descriptors.memory_fd},share=on,prealloc=off",
    ]
    arguments += _monitor_and_serial_ports(spec, descriptors)
    if spec.kernel_path is not None:
        # Not options but plain strings for QEMU: a comma in them means nothing.
        arguments += ["-kernel", str(spec.kernel_path)]
        if spec.initrd_path is not None:
            arguments += ["-initrd", str(spec.initrd_path)]
        if spec.kernel_command_line:
            arguments += ["-append", spec.kernel_command_line]
    arguments += disk_devices.arguments(spec.disks, boots_from_disk=spec.kernel_path is None)
    arguments += nic_arguments(spec.nics)
    if spec.incoming:
        arguments += ["-incoming", "defer"]
    arguments += ["-S"]
    return arguments


def _monitor_and_serial_ports(spec: GuestSpec, descriptors: GuestDescriptors) -> list[str]:
    console_socket = escape_option_value(str(spec.console_socket_path))
    console_log = escape_option_value(str(spec.console_log_path))
    heartbeat_log = escape_option_value(str(spec.heartbeat_log_path))
    return [
        "-chardev",
        f"socket,id=qmp,fd={descriptors.qmp_listen_fd},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        f"socket,id=console,path={console_socket},server=on,wait=off,logfile={console_log},logappend=on",
        "-device",
        "isa-serial,index=0,chardev=console",
        "-chardev",
        f"file,id=heartbeat,path={heartbeat_log},append=on",
        "-device",
        "isa-serial,index=1,chardev=heartbeat",
    ]

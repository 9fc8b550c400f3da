"""hostd's settings, read from the environment here and nowhere else. vpxa reads its own from the same one."""

import ipaddress
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hostd.vm.vmx_process import VmxSettings
from runtime.daemon.settings import Settings, SettingsError
from runtime.rpc.server import MAX_UNIX_PATH_BYTES

_MEMORY_SHARE = 0.8
_VCPUS_PER_CORE = 8
# The longest name in a VM's run directory: "/" + 13 characters of a uuid + "/" + a socket of vmx or QEMU.
_RUN_DIRECTORY_RESERVE = 45


@dataclass(frozen=True)
class Config:
    """All of it. Sizes in bytes; `vmotion_address` is empty where vMotion isn't configured."""

    host_name: str
    state_directory: Path
    run_directory: Path
    management_address: str
    vmotion_address: str
    datastores: Mapping[str, Path]
    memory_bytes: int
    cpu_cores: int
    vcpu_capacity: int
    qemu_binary: Path
    accelerator: str
    log_json: bool
    vmx_command: tuple[str, ...]
    base_environment: Mapping[str, str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """:raises SettingsError: a setting is missing or can't be; it names the variable."""
        settings = Settings(environment)
        cores = os.cpu_count() or 1
        run_directory = settings.path("HOST_RUN_DIR")
        if len(os.fsencode(run_directory)) + _RUN_DIRECTORY_RESERVE > MAX_UNIX_PATH_BYTES:
            raise SettingsError("HOST_RUN_DIR", "is too long: unix sockets are made below it")
        management = settings.text("HOST_MANAGEMENT_ADDRESS", "127.0.1.1")
        port = settings.integer("HOST_MANAGEMENT_PORT", 8443, maximum=65535)
        machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            host_name=settings.text("HOST_NAME"),
            state_directory=settings.path("HOST_STATE_DIR") / "hostd",
            run_directory=run_directory,
            management_address=f"{management}:{port}",
            vmotion_address=_vmotion_address(settings),
            datastores=settings.paths_by_name("HOST_DATASTORES"),
            memory_bytes=settings.integer("HOST_MEMORY_BYTES", int(machine_bytes * _MEMORY_SHARE), minimum=1),
            cpu_cores=cores,
            vcpu_capacity=settings.integer("HOST_VCPU_CAPACITY", cores * _VCPUS_PER_CORE, minimum=1),
            qemu_binary=_find_binary(settings.text("HOST_QEMU", "qemu-system-x86_64"), environment),
            accelerator=settings.choice("HOST_ACCELERATOR", ("auto", "tcg", "kvm"), "auto"),
            log_json=settings.flag("LOG_JSON"),
            vmx_command=_vmx_command(settings),
            base_environment=dict(environment),
        )

    @property
    def socket_path(self) -> Path:
        """Where hostd listens."""
        return self.run_directory / "hostd.sock"

    def vmx_settings(self, host_uuid: str, accelerator: str) -> VmxSettings:
        """How vmx processes are started on this host."""
        inherited = {
            name: value
            for name, value in self.base_environment.items()
            if not name.startswith(("HOST_", "VPXD_", "HOSTD_", "VMX_"))
        }
        own = {
            "VMX_HOST_NAME": self.host_name,
            "VMX_HOST_UUID": host_uuid,
            "VMX_VMOTION_ADDRESS": self.vmotion_address,
            "VMX_QEMU": str(self.qemu_binary),
            "VMX_ACCELERATOR": accelerator,
            "LOG_JSON": "1" if self.log_json else "0",
        }
        return VmxSettings(self.vmx_command, {**inherited, **own}, self.run_directory)


def _vmotion_address(settings: Settings) -> str:
    """An IP address, because it's bound to and compared; empty: vMotion isn't configured."""
    address = settings.text("HOST_VMOTION_ADDRESS", "")
    try:
        return str(ipaddress.ip_address(address)) if address else ""
    except ValueError:
        raise SettingsError("HOST_VMOTION_ADDRESS", f"must be an IP address, not {address!r}") from None


def _vmx_command(settings: Settings) -> tuple[str, ...]:
    """HOSTD_VMX_COMMAND, words separated by spaces, replaces `python -m vmx`."""
    if settings.has("HOSTD_VMX_COMMAND"):
        return tuple(settings.text("HOSTD_VMX_COMMAND").split())
    return (sys.executable, "-m", "vmx")


def _find_binary(name: str, environment: Mapping[str, str]) -> Path:
    found = shutil.which(name, path=environment.get("PATH"))
    if found is None:
        raise SettingsError("HOST_QEMU", f"names no program that can be run: {name!r}")
    return Path(found).absolute()

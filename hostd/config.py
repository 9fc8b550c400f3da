"""hostd's settings, read from the environment here and nowhere else. vpxa reads its own from the same one."""

import ipaddress
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hostd.network.port_groups import DEFAULT_PORT_GROUPS, Networks, PortGroup, parse_port_groups
from hostd.network.switch_process import SwitchSettings
from hostd.vm.vmx_process import VmxSettings
from runtime.daemon.settings import Settings, SettingsError
from runtime.rpc.server import MAX_UNIX_PATH_BYTES

_MEMORY_SHARE = 0.8
_VCPUS_PER_CORE = 8
# The longest name in a VM's run directory: "/" + 13 characters of a uuid + "/" + a socket of vmx or QEMU.
_RUN_DIRECTORY_RESERVE = 45
_NETWORK_FOLDER = "net"
_VXLAN_PORT = 4789  # RFC 7348, section 8


@dataclass(frozen=True)
class Config:
    """All of it. Sizes in bytes; `vmotion_address` is empty where vMotion isn't configured.

    `cpu_generation` is the EVC baseline of the older machine that this host pretends to be; empty: it doesn't.
    """

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
    qemu_img_binary: Path | None  # None: there's none, and images can't be imported
    accelerator: str
    cpu_generation: str
    log_json: bool
    vmx_command: tuple[str, ...]
    port_groups: tuple[PortGroup, ...]
    switch_address: str
    switch_peers: tuple[str, ...]
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
            qemu_img_binary=_find_optional(settings, "HOST_QEMU_IMG", "qemu-img", environment),
            accelerator=settings.choice("HOST_ACCELERATOR", ("auto", "tcg", "kvm"), "auto"),
            cpu_generation=settings.text("HOST_CPU_GENERATION", ""),
            log_json=settings.flag("LOG_JSON"),
            vmx_command=_vmx_command(settings),
            port_groups=_port_groups(settings),
            switch_address=_switch_address(settings, management),
            switch_peers=_switch_peers(settings),
            base_environment=dict(environment),
        )

    @property
    def socket_path(self) -> Path:
        """Where hostd listens."""
        return self.run_directory / "hostd.sock"

    def vmx_settings(self, host_uuid: str, accelerator: str) -> VmxSettings:
        """How vmx processes are started on this host."""
        own = {
            "VMX_HOST_NAME": self.host_name,
            "VMX_HOST_UUID": host_uuid,
            "VMX_VMOTION_ADDRESS": self.vmotion_address,
            "VMX_QEMU": str(self.qemu_binary),
            "VMX_ACCELERATOR": accelerator,
            "LOG_JSON": "1" if self.log_json else "0",
        }
        return VmxSettings(self.vmx_command, {**self._inherited(), **own}, self.run_directory)

    @property
    def networks(self) -> Networks:
        """The host's port groups."""
        return Networks(self.host_name, self.run_directory / _NETWORK_FOLDER, self.port_groups)

    def switch_settings(self) -> SwitchSettings:
        """How the host's virtual switch is started."""
        directory = self.run_directory / _NETWORK_FOLDER
        own = {
            "VSWITCH_HOST_NAME": self.host_name,
            "VSWITCH_DIR": str(directory),
            "VSWITCH_SEGMENTS": ",".join(str(group.segment_id) for group in self.port_groups),
            "VSWITCH_ADDRESS": self.switch_address,
            "VSWITCH_PEERS": ",".join(self.switch_peers),
            "LOG_JSON": "1" if self.log_json else "0",
        }
        command = (sys.executable, "-m", "vswitch")
        return SwitchSettings(self.host_name, command, {**self._inherited(), **own}, directory)

    def _inherited(self) -> dict[str, str]:
        """The environment without settings of daemons."""
        return {
            name: value
            for name, value in self.base_environment.items()
            if not name.startswith(("HOST_", "VPXD_", "HOSTD_", "VMX_", "VSWITCH_"))
        }


def _vmotion_address(settings: Settings) -> str:
    """An IP address, because it's bound to and compared; empty: vMotion isn't configured."""
    address = settings.text("HOST_VMOTION_ADDRESS", "")
    try:
        return str(ipaddress.ip_address(address)) if address else ""
    except ValueError:
        raise SettingsError("HOST_VMOTION_ADDRESS", f"must be an IP address, not {address!r}") from None


def _port_groups(settings: Settings) -> tuple[PortGroup, ...]:
    try:
        return parse_port_groups(settings.entries("HOST_PORT_GROUPS", DEFAULT_PORT_GROUPS))
    except ValueError as error:
        raise SettingsError("HOST_PORT_GROUPS", str(error)) from None


def _switch_address(settings: Settings, management: str) -> str:
    """HOST_VSWITCH_ADDRESS and HOST_VSWITCH_PORT: this host's end of the tunnels between the virtual switches."""
    text = settings.text("HOST_VSWITCH_ADDRESS", management)
    port = settings.integer("HOST_VSWITCH_PORT", _VXLAN_PORT, minimum=1, maximum=65535)
    return _endpoint("HOST_VSWITCH_ADDRESS", text, port)


def _switch_peers(settings: Settings) -> tuple[str, ...]:
    """HOST_VSWITCH_PEERS: all hosts' "address" or "address:port", the same list on each of them."""
    default = settings.integer("HOST_VSWITCH_PORT", _VXLAN_PORT, minimum=1, maximum=65535)
    return tuple(
        _endpoint("HOST_VSWITCH_PEERS", entry, default)
        for entry in settings.entries("HOST_VSWITCH_PEERS", ())
    )


def _endpoint(variable: str, text: str, default_port: int) -> str:
    host, separator, port = text.partition(":")
    is_port = port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        address = None
    if address is None or address.is_multicast or address.is_unspecified or (separator and not is_port):
        raise SettingsError(variable, f"must be an IPv4 address of a host, not {text!r}")
    return f"{address}:{port or default_port}"


def _vmx_command(settings: Settings) -> tuple[str, ...]:
    """HOSTD_VMX_COMMAND, words separated by spaces, replaces `python -m vmx`."""
    if settings.has("HOSTD_VMX_COMMAND"):
        return tuple(settings.text("HOSTD_VMX_COMMAND").split())
    return (sys.executable, "-m", "vmx")


def _find_optional(
    settings: Settings, variable: str, default: str, environment: Mapping[str, str]
) -> Path | None:
    """A program that the host may lack, unless it is named."""
    found = shutil.which(settings.text(variable, default), path=environment.get("PATH"))
    if found is None and settings.has(variable):
        raise SettingsError(variable, "names no program that can be run")
    return Path(found).absolute() if found is not None else None


def _find_binary(name: str, environment: Mapping[str, str]) -> Path:
    found = shutil.which(name, path=environment.get("PATH"))
    if found is None:
        raise SettingsError("HOST_QEMU", f"names no program that can be run: {name!r}")
    return Path(found).absolute()

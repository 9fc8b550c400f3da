"""One virtual machine on this host, as hostd holds it in memory.

    nothing runs      vmx None, unmanaged None            poweredOff
    vmx attached      vmx set; `state` is its last word   by its execution state
    unmanaged         unmanaged set                       poweredOn: QEMU lives, its vmx is dead

What changes it: vm/supervisor.py (what vmx says, what ends) and the operations that hold the VM's configuration lock.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from hostd.host.process import ProcessHandle, ProcessId
from hostd.vm.vmx_client import VmxClient
from hostd.vmotion.admission import Reservation
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.ondisk.datastore_path import DatastorePath

_POWERED_ON = frozenset(
    {
        host_pb2.EXECUTION_STATE_RUNNING,
        host_pb2.EXECUTION_STATE_STUNNED,
        host_pb2.EXECUTION_STATE_EMIGRATING,
    }
)


@dataclass(frozen=True)
class AttachedVmx:
    """A living vmx and the connection to it."""

    process: ProcessHandle
    client: VmxClient


class MachineObserver(Protocol):
    """A migration that follows what happens to its VM. Neither method raises."""

    async def state_changed(self, machine: "Machine") -> None:
        """vmx told a new state."""

    async def vmx_ended(self, machine: "Machine", guest: ProcessHandle | None) -> None:
        """vmx is gone; `guest` is its QEMU where that still lives. Whoever kills the guest here decides its fate."""


@dataclass(eq=False)
class Machine:
    """One VM. `masked`: an immigrating VM that nobody may see yet."""

    config: vm_config_pb2.VmConfig
    vmx_path: DatastorePath
    masked: bool = False
    vmx: AttachedVmx | None = None
    unmanaged: ProcessHandle | None = None
    state: service_pb2.GetStateResponse = field(default_factory=service_pb2.GetStateResponse)
    guest: ProcessId | None = None
    failure: str = ""  # why the guest ended, or why the VM can't be used as it is
    ending: bool = False  # its vmx was told to end: that it ends is no failure
    observer: MachineObserver | None = None
    cpu_percent: float = 0.0
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set while nothing runs

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def uuid(self) -> str:
        """The instance uuid."""
        return self.config.uuid

    @property
    def name(self) -> str:
        """The name of the VM and its files."""
        return self.config.name

    @property
    def active(self) -> bool:
        """Whether anything of it runs: a vmx or a guest."""
        return self.vmx is not None or self.unmanaged is not None

    @property
    def execution_state(self) -> host_pb2.ExecutionState.ValueType:
        """What it does now; UNSPECIFIED for an unmanaged guest: nobody can tell."""
        if self.vmx is not None:
            return self.state.execution_state
        if self.unmanaged is not None:
            return host_pb2.EXECUTION_STATE_UNSPECIFIED
        return (
            host_pb2.EXECUTION_STATE_FAILED if self.failure and self.guest else host_pb2.EXECUTION_STATE_OFF
        )

    @property
    def powered_on(self) -> bool:
        """Whether a guest of it exists that runs or can go on."""
        return self.unmanaged is not None or (self.vmx is not None and self.execution_state in _POWERED_ON)

    @property
    def reservation(self) -> Reservation:
        """What admission has to reserve for it."""
        return Reservation(self.uuid, self.config.ram_bytes, self.config.vcpus)

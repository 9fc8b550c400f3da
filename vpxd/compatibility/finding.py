"""What a compatibility check looks at and what it finds. Pure: no I/O, no clock, no logging."""

from collections.abc import Callable
from dataclasses import dataclass

from runtime.faults import VimFault
from vpxd.inventory.values import (
    ExecutionState,
    HostConnection,
    HostInfo,
    HostUsage,
    PowerState,
    VmConfig,
)


@dataclass(frozen=True)
class HostFacts:
    """A host as a check sees it."""

    id: str
    name: str
    connection: HostConnection
    info: HostInfo
    usage: HostUsage


@dataclass(frozen=True)
class VmFacts:
    """A VM as a check sees it. `home_datastore_uuid` is empty where its host doesn't say which datastore that is."""

    id: str
    config: VmConfig
    home: str
    home_datastore: str
    home_datastore_uuid: str
    power_state: PowerState
    execution_state: ExecutionState

    @property
    def live(self) -> bool:
        """Whether a move of it is a live migration."""
        return self.power_state is PowerState.POWERED_ON


@dataclass(frozen=True)
class Move:
    """The question: can this VM go from there to there? `source` is None where its host isn't known."""

    vm: VmFacts
    source: HostFacts | None
    destination: HostFacts


@dataclass(frozen=True)
class Finding:
    """One result. An error: the operation would fail. A warning: it may disturb. `remedy`: what to do about it."""

    error: bool
    fault: VimFault
    remedy: str


Check = Callable[[Move], tuple[Finding, ...]]


def error(fault: VimFault, remedy: str) -> Finding:
    """A finding with which the operation would fail."""
    return Finding(True, fault, remedy)


def warning(fault: VimFault, remedy: str) -> Finding:
    """A finding that doesn't stop the operation."""
    return Finding(False, fault, remedy)

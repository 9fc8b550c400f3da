"""What the VM does now. Pure: no I/O, no clock, no logging."""

from runtime.faults import InvalidPowerState
from vpxd.compatibility.finding import Finding, Move, error
from vpxd.inventory.values import ExecutionState

_MOVABLE = frozenset({ExecutionState.RUNNING, ExecutionState.UNKNOWN})


def check(move: Move) -> tuple[Finding, ...]:
    """A VM that is powered on must run: not be starting, stunned, moving, or dead."""
    state = move.vm.execution_state
    if not move.vm.live or state in _MOVABLE:
        return ()
    fault = InvalidPowerState(
        f"{move.vm.config.name} is {state.value}, it can move live only while it runs",
        state=state.value,
        required=ExecutionState.RUNNING.value,
    )
    return (error(fault, "wait until it runs, or power it off"),)

"""What the VM does now, and who works on it. Pure: no I/O, no clock, no logging."""

from runtime.faults import InvalidPowerState, TaskInProgress
from vpxd.compatibility.finding import Finding, FindingGroup, Move, error
from vpxd.inventory.values import ExecutionState

_MOVABLE = frozenset({ExecutionState.RUNNING, ExecutionState.UNKNOWN})


def check(move: Move) -> tuple[Finding, ...]:
    """A VM that is powered on must run: not be starting, stunned, moving, or dead. No task works on it."""
    return (*_held(move), *_running(move))


def _held(move: Move) -> tuple[Finding, ...]:
    holder, name = move.vm.holder, move.vm.config.name
    if holder is None:
        return ()
    fault = TaskInProgress(
        f"{name} is held by {holder.task} ({holder.operation})",
        entity=name,
        task=holder.task,
        operation=holder.operation,
    )
    return (error(fault, f"wait for the end of {holder.task}, or cancel it", FindingGroup.SOURCE),)


def _running(move: Move) -> tuple[Finding, ...]:
    state = move.vm.execution_state
    if not move.vm.live or state in _MOVABLE:
        return ()
    fault = InvalidPowerState(
        f"{move.vm.config.name} is {state.value}, it can move live only while it runs",
        state=state.value,
        required=ExecutionState.RUNNING.value,
    )
    return (error(fault, "wait until it runs, or power it off", FindingGroup.SOURCE),)

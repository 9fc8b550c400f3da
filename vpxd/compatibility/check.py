"""All checks of a move. Pure: no I/O, no clock, no logging."""

from runtime.faults import VimFault
from vpxd.compatibility import (
    affinity,
    cpu,
    datastore,
    disk,
    host_state,
    machine_type,
    memory,
    network,
    policy,
    power,
    priority,
    vmotion,
)
from vpxd.compatibility.finding import Check, Finding, Move

CHECKS: tuple[Check, ...] = (
    host_state.check,
    power.check,
    datastore.check,
    disk.check,
    policy.check,
    network.check,
    machine_type.check,
    cpu.check,
    memory.check,
    vmotion.check,
    affinity.check,
    priority.check,
)
# What another host has to be able to do; on its own host the VM runs already.
_OF_ANOTHER_HOST: frozenset[Check] = frozenset(
    {machine_type.check, cpu.check, memory.check, vmotion.check, affinity.check, priority.check}
)


def findings(move: Move) -> tuple[Finding, ...]:
    """What every check finds, not only the first; errors first, in the order of the checks."""
    checks = [check for check in CHECKS if move.changes_host or check not in _OF_ANOTHER_HOST]
    found = [finding for check in checks for finding in check(move)]
    return tuple(sorted(found, key=lambda finding: not finding.error))


def first_error(found: tuple[Finding, ...]) -> VimFault | None:
    """The fault with which the operation would fail; None where there are at most warnings."""
    return next((finding.fault for finding in found if finding.error), None)

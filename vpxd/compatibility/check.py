"""All checks of a move. Pure: no I/O, no clock, no logging."""

from runtime.faults import VimFault
from vpxd.compatibility import cpu, datastore, host_state, machine_type, memory, power, vmotion
from vpxd.compatibility.finding import Check, Finding, Move

CHECKS: tuple[Check, ...] = (
    host_state.check,
    power.check,
    datastore.check,
    machine_type.check,
    cpu.check,
    memory.check,
    vmotion.check,
)


def findings(move: Move) -> tuple[Finding, ...]:
    """What every check finds, not only the first; errors first, in the order of the checks."""
    found = [finding for check in CHECKS for finding in check(move)]
    return tuple(sorted(found, key=lambda finding: not finding.error))


def first_error(found: tuple[Finding, ...]) -> VimFault | None:
    """The fault with which the operation would fail; None where there are at most warnings."""
    return next((finding.fault for finding in found if finding.error), None)

"""Pure: no I/O, no clock, no logging. What a vmx process is doing with its guest.

OFF ──power on──▶ STARTING ──▶ RUNNING ◀──canceled, failed── EMIGRATING ──▶ STUNNED ──▶ OFF
 │                                ▲  └──start source──────────▶ ▲              │
 └──prepare──▶ IMMIGRATING ───────┘                             └──given back──┘
any but OFF ──QEMU ended by itself──▶ FAILED
"""

from enum import Enum


class ExecutionState(Enum):
    """Each member's comment names its next states; FAILED and OFF come from everywhere."""

    OFF = "off"  # next: STARTING, IMMIGRATING
    STARTING = "starting"  # next: RUNNING
    RUNNING = "running"  # next: EMIGRATING
    EMIGRATING = "emigrating"  # next: RUNNING, STUNNED
    STUNNED = "stunned"  # next: RUNNING (rolled back or given back)
    IMMIGRATING = "immigrating"  # next: RUNNING; masked until then
    FAILED = "failed"  # end: the guest's process ended by itself


_S = ExecutionState
MOVES: frozenset[tuple[ExecutionState, ExecutionState]] = frozenset(
    [
        (_S.OFF, _S.STARTING),
        (_S.OFF, _S.IMMIGRATING),
        (_S.STARTING, _S.RUNNING),
        (_S.RUNNING, _S.EMIGRATING),
        (_S.EMIGRATING, _S.RUNNING),
        (_S.EMIGRATING, _S.STUNNED),
        (_S.STUNNED, _S.RUNNING),
        (_S.IMMIGRATING, _S.RUNNING),
        *((state, _S.FAILED) for state in _S if state not in {_S.OFF, _S.FAILED}),
        *((state, _S.OFF) for state in _S if state is not _S.OFF),
    ]
)

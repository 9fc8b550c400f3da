"""Which of the waiting migrations may start, and what the others wait for. Pure: no I/O, no clock, no logging.

The order: HIGH before DEFAULT before LOW, and first come first served among equals. A waiter keeps its place on
each of its resources from all behind it, whether or not it can start; one behind it that wants other resources
starts before it. So nobody is overtaken on a resource by an equal.

Nobody starves: a waiter that was overtaken OVERTAKINGS times on one of its resources by migrations that came later
counts as of the next higher priority, and with the highest one it is behind nobody who came later. So at most
2 x OVERTAKINGS later ones start before it on its resources.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vpxd.migration.limits.costs import Claim, Maxima, Resource
from vpxd.migration.options import Priority

OVERTAKINGS = 8
_RANKS = {Priority.HIGH: 0, Priority.DEFAULT: 1, Priority.UNSPECIFIED: 1, Priority.LOW: 2}


@dataclass(frozen=True)
class Waiting:
    """One that waits. `number` rises with each that came; `overtaken`: how often by one that came later."""

    claim: Claim
    number: int
    overtaken: int = 0

    @property
    def rank(self) -> int:
        """The smaller, the sooner."""
        return max(0, _RANKS[self.claim.priority] - self.overtaken // OVERTAKINGS)


@dataclass(frozen=True)
class Place:
    """Where one stands: 1 is next on its resources. `reason`: which limit, and who holds it."""

    position: int
    reason: str


def in_order(waiting: Sequence[Waiting]) -> list[Waiting]:
    """The waiting ones, the next first."""
    return sorted(waiting, key=lambda one: (one.rank, one.number))


def startable(running: Sequence[Claim], waiting: Sequence[Waiting], limits: Maxima) -> list[Waiting]:
    """Which of the waiting ones can start now, in order; together they keep within every limit."""
    used = units_used(running)
    chosen = []
    for one in in_order(waiting):
        if all(
            used[charge.resource] + charge.units <= limits.of(charge.resource) for charge in one.claim.charges
        ):
            chosen.append(one)
        # Also for one that can't start: its place is kept from those behind it.
        used.update({charge.resource: charge.units for charge in one.claim.charges})
    return chosen


def overtaken_by(starting: Waiting, waiting: Sequence[Waiting]) -> list[Waiting]:
    """Those that came earlier, want a resource of it, and still wait when it starts."""
    return [
        one
        for one in waiting
        if one.number < starting.number and one.claim.resources & starting.claim.resources
    ]


def place(one: Waiting, running: Sequence[Claim], waiting: Sequence[Waiting], limits: Maxima) -> Place:
    """Where it stands among the waiting ones, itself included, and what it waits for."""
    ahead = [
        other
        for other in in_order(waiting)
        if other.number != one.number
        and (other.rank, other.number) < (one.rank, one.number)
        and other.claim.resources & one.claim.resources
    ]
    return Place(len(ahead) + 1, _full(one, running, limits) or _behind(one, ahead))


def units_used(running: Sequence[Claim]) -> Counter[Resource]:
    """What is taken now."""
    used: Counter[Resource] = Counter()
    for claim in running:
        used.update({charge.resource: charge.units for charge in claim.charges})
    return used


def _full(one: Waiting, running: Sequence[Claim], limits: Maxima) -> str:
    used = units_used(running)
    for charge in one.claim.charges:
        there_are = limits.of(charge.resource)
        if used[charge.resource] + charge.units > there_are:
            tasks = ", ".join(claim.task for claim in running if charge.resource in claim.resources)
            return (
                f"{charge.resource.label} has {max(0, there_are - used[charge.resource])} of {there_are} units "
                f"free, {charge.units} are needed; held by {tasks}"
            )
    return ""


def _behind(one: Waiting, ahead: Sequence[Waiting]) -> str:
    shared = next((other for other in reversed(ahead)), None)
    if shared is None:
        return "its turn"
    resource = next(
        charge.resource for charge in one.claim.charges if charge.resource in shared.claim.resources
    )
    return f"{shared.claim.task} is before it on {resource.label}"

"""Choosing a host when none is named. Pure: no I/O, no clock, no logging."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import VmConfig
from vpxd.placement.score import Score, Traits, score


@dataclass(frozen=True)
class Candidate:
    """A host, and why it can't take the VM; no reasons: it can, with these traits."""

    host: HostFacts
    reasons: tuple[str, ...]
    traits: Traits = field(default_factory=Traits)


@dataclass(frozen=True)
class Choice:
    """The chosen host and its score, or None and every host's reasons."""

    host: HostFacts | None
    score: Score | None
    reasons: tuple[str, ...]


def choose(config: VmConfig, candidates: Sequence[Candidate]) -> Choice:
    """The best host of those that can take the VM."""
    reasons = tuple(
        f"{candidate.host.name}: {'; '.join(candidate.reasons)}"
        for candidate in candidates
        if candidate.reasons
    )
    fitting = [candidate for candidate in candidates if not candidate.reasons]
    if not fitting:
        return Choice(None, None, reasons or ("the cluster has no other host",))
    best = ranked(config, fitting)[0]
    return Choice(best.host, score(config, best.host, best.traits), reasons)


def ranked(config: VmConfig, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first; a host that the VM is on already wins (nothing of its memory moves); at a tie the first by name.

    Those that can't take it come last, by name.
    """

    def place(candidate: Candidate) -> tuple[bool, bool, float, str]:
        total = score(config, candidate.host, candidate.traits).total
        # Rounded, so that a heartbeat's noise doesn't change the order of equals.
        return bool(candidate.reasons), not candidate.traits.here, -round(total, 3), candidate.host.name

    return sorted(candidates, key=place)

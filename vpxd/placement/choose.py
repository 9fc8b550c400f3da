"""Choosing a host when none is named. Pure: no I/O, no clock, no logging."""

from collections.abc import Sequence
from dataclasses import dataclass

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import VmConfig
from vpxd.placement.score import Score, score


@dataclass(frozen=True)
class Candidate:
    """A host, and why it can't take the VM; no reasons: it can."""

    host: HostFacts
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The chosen host and its score, or None and every host's reasons."""

    host: HostFacts | None
    score: Score | None
    reasons: tuple[str, ...]


def choose(config: VmConfig, candidates: Sequence[Candidate]) -> Choice:
    """The host with the most room left after taking the VM; at a tie the first by name, so that it can be foretold."""
    reasons = tuple(
        f"{candidate.host.name}: {'; '.join(candidate.reasons)}"
        for candidate in candidates
        if candidate.reasons
    )
    fitting = sorted(
        (candidate.host for candidate in candidates if not candidate.reasons), key=lambda host: host.name
    )
    if not fitting:
        return Choice(None, None, reasons or ("the cluster has no other host",))
    best = max(fitting, key=lambda host: score(config, host).total)
    return Choice(best, score(config, best), reasons)

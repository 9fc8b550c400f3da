"""Pure: no I/O, no clock, no logging.

What the demonstration on docker-compose found: out/compose.json. Beside what `make demo` tells, it tells what went over
which network and what came back after it had been killed.
"""

from dataclasses import dataclass, field
from typing import Any

from demo.compose_network import Traffic
from demo.result import Result


@dataclass(frozen=True)
class Restart:
    """Something was killed; `back_s` later its cluster was as before, VM included."""

    what: str
    back_s: float


@dataclass
class ComposeResult(Result):
    """Everything that goes into compose.json."""

    network: list[Traffic] = field(default_factory=list)
    connections: dict[str, int] = field(default_factory=dict)
    restarts: list[Restart] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """compose.json."""
        return {
            **super().document(),
            "network": [traffic.document() for traffic in self.network],
            "connections_seen": self.connections,
            "restarts": [{"what": one.what, "back_s": round(one.back_s, 2)} for one in self.restarts],
        }

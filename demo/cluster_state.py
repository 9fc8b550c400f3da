"""state.json: which processes a local cluster has started, so that `down` ends exactly those."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from demo.processes import ProcessId
from runtime.faults import CannotAccessFile, FileNotFound
from runtime.ondisk.durable import read_bounded, write_durably

_FORMAT = 1
_MAX_BYTES = 1 << 20


class StateUnreadable(Exception):
    """The file is there but isn't one of ours: nothing is ended on a guess."""


@dataclass(frozen=True)
class ClusterState:
    """`processes` by the daemon's name."""

    host_count: int = 0
    block: int = 0
    vpxd_port: int = 0
    join_port: int = 0
    processes: Mapping[str, ProcessId] = field(default_factory=dict)


def load(path: Path) -> ClusterState | None:
    """The state that was saved; None: there is none.

    :raises StateUnreadable: it can't be read as one.
    """
    try:
        content = json.loads(read_bounded(path, _MAX_BYTES))
        if content["format"] != _FORMAT:
            raise StateUnreadable(f"{path} was written by another version")
        processes = {
            str(name): ProcessId(int(one["pid"]), int(one["start_time"]))
            for name, one in content["processes"].items()
        }
        return ClusterState(
            host_count=int(content["host_count"]),
            block=int(content["block"]),
            vpxd_port=int(content["vpxd_port"]),
            join_port=int(content["join_port"]),
            processes=processes,
        )
    except FileNotFound:
        return None
    except (CannotAccessFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateUnreadable(f"{path} can't be read: {error}") from error


def save(path: Path, state: ClusterState) -> None:
    """Writes it durably. Blocking."""
    content = {
        "format": _FORMAT,
        "host_count": state.host_count,
        "block": state.block,
        "vpxd_port": state.vpxd_port,
        "join_port": state.join_port,
        "processes": {name: asdict(process) for name, process in state.processes.items()},
    }
    write_durably(path, json.dumps(content, indent=2).encode() + b"\n")

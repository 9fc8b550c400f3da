"""What can go wrong with a local cluster.

ClusterError
  PortBusy        somebody listens where a daemon of ours should
  DaemonEnded     a daemon ended at its start
  NotReady        the cluster didn't become ready in time
  LeftOver        something that the cluster started is still there
"""

from pathlib import Path


class ClusterError(Exception):
    """The cluster can't be started or stopped as asked; the message says why and what to do."""


class PortBusy(ClusterError):
    """Somebody listens on an address that a daemon of ours needs."""

    def __init__(self, daemon: str, address: str, port: int) -> None:
        super().__init__(
            f"{address}:{port} is in use, and {daemon} needs it. Is another cluster running? `make down` stops the "
            f"local one; `ss -ltnp 'sport = :{port}'` shows who listens there."
        )
        self.daemon = daemon
        self.address = address
        self.port = port


class DaemonEnded(ClusterError):
    """A daemon ended at its start; the end of its log is in the message."""

    def __init__(self, daemon: str, log: Path) -> None:
        super().__init__(f"{daemon} ended at its start; {log} says:\n{_last_lines(log)}")
        self.daemon = daemon
        self.log = log


class NotReady(ClusterError):
    """The cluster didn't become ready in time."""


class LeftOver(ClusterError):
    """Something that the cluster started is still there."""


def _last_lines(log: Path, count: int = 8) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in lines[-count:]) or "  (nothing)"

"""`python -m demo.local_cluster up|down|status`."""

import argparse
import asyncio
import sys
from pathlib import Path

from demo.cluster_layout import DEFAULT_DIRECTORY, ClusterLayout
from demo.errors import ClusterError
from demo.local_cluster import GUEST_IMAGES, LocalCluster
from runtime.faults import VimFault
from vpxd.cli.errors import CliError

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3


def main() -> int:
    """The exit status: 0; 1 it failed, the reason is on stderr; `status`: 3 it isn't running as a whole."""
    arguments = _parse()
    layout = ClusterLayout(arguments.dir.absolute(), arguments.hosts)
    cluster = LocalCluster(layout, GUEST_IMAGES, say=print)
    actions = {"up": _up, "down": _down, "status": _status}
    try:
        return actions[arguments.action](cluster)
    except (ClusterError, VimFault, CliError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except ExceptionGroup as group:
        known, others = group.split((ClusterError, VimFault, CliError))
        if others is not None or known is None:
            raise
        for leaf in _leaves(known):
            print(f"error: {leaf}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo.local_cluster", description="vpxd and hosts as processes on this machine."
    )
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument(
        "--dir", type=Path, default=DEFAULT_DIRECTORY, help="where the cluster lives (out/cluster)"
    )
    parser.add_argument("--hosts", type=int, default=3, help="how many hosts (3)")
    return parser.parse_args()


def _up(cluster: LocalCluster) -> int:
    asyncio.run(cluster.up())
    config = cluster.layout.client_directory / "client.json"
    print(f"`vpx` finds it by itself, or with --config {config}; logs are in {cluster.layout.log_directory}.")
    return 0


def _down(cluster: LocalCluster) -> int:
    was_there = cluster.load()
    killed = asyncio.run(cluster.down())
    for name in killed:
        print(f"{name} didn't stop when asked and was killed")
    print(
        "the cluster is stopped; its inventory and datastores are kept"
        if was_there
        else "nothing was running"
    )
    return 0


def _status(cluster: LocalCluster) -> int:
    cluster.load()
    memory = cluster.rss_mib()
    for daemon in cluster.layout.daemons():
        process = cluster.process(daemon.name)
        where = ", ".join(f"{address}:{port}" for address, port in daemon.listens)
        state = f"runs   pid {process.pid:<8} {memory[daemon.name]:5.1f} MiB" if process else "isn't running"
        print(f"{daemon.name:<12} {state}  {where}".rstrip())
    vms = cluster.vm_processes()
    print(f"processes of VMs: {', '.join(str(one.pid) for one in vms) or 'none'}")
    return 0 if len(memory) == len(cluster.layout.daemons()) else EXIT_NOT_RUNNING


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())

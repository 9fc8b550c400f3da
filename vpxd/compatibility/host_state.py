"""The hosts: connected, and something to do between them. Pure: no I/O, no clock, no logging."""

from runtime.faults import HostNotConnected, InvalidArgument
from vpxd.compatibility.finding import Finding, FindingGroup, HostFacts, Move, error
from vpxd.inventory.values import HostConnection


def check(move: Move) -> tuple[Finding, ...]:
    """Source and destination answer; they are two hosts, or files of the VM move on its own one."""
    findings = [*_connected(move.destination, FindingGroup.HOST)]
    if not move.changes_host:
        findings += _something_to_do(move)
    elif move.source is not None:
        findings += _connected(move.source, FindingGroup.SOURCE)
    return tuple(findings)


def _something_to_do(move: Move) -> tuple[Finding, ...]:
    if move.relocation.moves_files:
        return ()
    vm, host = move.vm.config.name, move.destination.name
    fault = InvalidArgument(
        f"{vm} is on {host} already, and on the datastores and in the formats that are asked for",
        argument="host",
    )
    return (error(fault, "choose another host, or another datastore"),)


def _connected(host: HostFacts, group: FindingGroup) -> tuple[Finding, ...]:
    if host.connection is HostConnection.CONNECTED:
        return ()
    fault = HostNotConnected(
        f"{host.name} is {host.connection.value}", host=host.name, state=host.connection.value
    )
    return (error(fault, f"see that vpxa runs on {host.name} and that vpxd can reach it", group),)

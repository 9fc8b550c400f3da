"""The hosts: connected, and two different ones. Pure: no I/O, no clock, no logging."""

from runtime.faults import HostNotConnected, InvalidArgument
from vpxd.compatibility.finding import Finding, HostFacts, Move, error
from vpxd.inventory.values import HostConnection


def check(move: Move) -> tuple[Finding, ...]:
    """Source and destination answer, and aren't the same host."""
    findings = [*_connected(move.destination)]
    if move.source is not None and move.source.id == move.destination.id:
        fault = InvalidArgument(
            f"{move.vm.config.name} is on {move.destination.name} already", argument="host"
        )
        findings.append(error(fault, "choose another host"))
    elif move.source is not None:
        findings += _connected(move.source)
    return tuple(findings)


def _connected(host: HostFacts) -> tuple[Finding, ...]:
    if host.connection is HostConnection.CONNECTED:
        return ()
    fault = HostNotConnected(
        f"{host.name} is {host.connection.value}", host=host.name, state=host.connection.value
    )
    return (error(fault, f"see that vpxa runs on {host.name} and that vpxd can reach it"),)

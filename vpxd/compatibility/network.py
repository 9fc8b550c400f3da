"""The port groups that the VM's NICs are plugged into afterwards. Pure: no I/O, no clock, no logging."""

from runtime.faults import CannotAccessNetwork, NotSupported
from vpxd.compatibility.finding import Finding, FindingGroup, Move, error, warning
from vpxd.inventory.values import NetworkAdapter

_GROUP = FindingGroup.NETWORK


def check(move: Move) -> tuple[Finding, ...]:
    """The destination has each NIC's port group, and what is called the same is the same network."""
    before = {nic.key: nic for nic in move.vm.config.nics}
    after = move.relocation.destination_vm.nics
    if not move.changes_host:
        return _unchanged(move, before, after)
    return tuple(
        finding
        for nic in after
        for finding in (*_there(move, nic), *_same_network(move, before[nic.key], nic))
    )


def _unchanged(
    move: Move, before: dict[int, NetworkAdapter], after: tuple[NetworkAdapter, ...]
) -> tuple[Finding, ...]:
    changed = [nic for nic in after if nic.network != before[nic.key].network]
    if not changed:
        return ()
    fault = NotSupported(
        f"{move.vm.config.name} stays on its host: its NICs can't be plugged elsewhere by a relocation",
        feature="network mapping on the same host",
    )
    return (error(fault, "leave the networks as they are, or choose another host", _GROUP),)


def _there(move: Move, nic: NetworkAdapter) -> tuple[Finding, ...]:
    host = move.destination
    if not nic.network or host.info.port_group(nic.network) is not None:
        return ()
    fault = CannotAccessNetwork(
        f"{host.name} has no port group {nic.network}, which NIC {nic.key} of {move.vm.config.name} is plugged into",
        network=nic.network,
        host=host.name,
        nic=str(nic.key),
    )
    known = ", ".join(sorted(group.name for group in host.info.port_groups)) or "none"
    remedy = f"map the NIC to a port group of {host.name} ({known}), or add {nic.network} there"
    if nic.connected:
        return (error(fault, remedy, _GROUP),)
    return (warning(fault, f"it can't be connected there: {remedy}", _GROUP),)


def _same_network(move: Move, before: NetworkAdapter, after: NetworkAdapter) -> tuple[Finding, ...]:
    """A port group of the same name with another segment is another network; who maps to another name knows that."""
    if move.source is None or before.network != after.network:
        return ()
    here, there = move.source.info.port_group(before.network), move.destination.info.port_group(after.network)
    if here is None or there is None or here.segment_id == there.segment_id:
        return ()
    host = move.destination.name
    fault = CannotAccessNetwork(
        f"{after.network} of {host} is another network than on {move.source.name}: segment {there.segment_id} "
        f"instead of {here.segment_id}",
        network=after.network,
        host=host,
        nic=str(after.key),
    )
    return (warning(fault, "the guest may lose its connections: give both port groups one segment", _GROUP),)

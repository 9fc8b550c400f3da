"""Relocations: the messages of the Vpxd service to vpxd's values and back."""

from proto.vpxd.v1 import service_pb2
from runtime.faults import InvalidArgument
from vpxd.inventory.values import DiskFormat
from vpxd.operations.vm_migrate import Wish
from vpxd.placement.destination import Recommendation
from vpxd.relocation.spec import DiskLocator, NicMapping, RelocateSpec
from vpxd.services.mapping import finding, migration_options


def wish(request: service_pb2.RelocateVmRequest) -> Wish:
    """What a client wants, not yet checked. :raises InvalidArgument: a disk format that isn't one."""
    return Wish(request.vm, relocate_spec(request.spec), migration_options(request.options))


def relocate_spec(message: service_pb2.RelocateSpec) -> RelocateSpec:
    """The specification. :raises InvalidArgument: a disk format that isn't one."""
    return RelocateSpec(
        host=message.host,
        cluster=message.cluster,
        datastore=message.datastore,
        format=_format(message.format, "spec.format"),
        policy=message.policy,
        disks=tuple(
            DiskLocator(disk.key, disk.datastore, _format(disk.format, "spec.disks"), disk.policy)
            for disk in message.disks
        ),
        networks=tuple(
            NicMapping(entry.nic, entry.from_network, entry.network) for entry in message.networks
        ),
    )


def recommendation(value: Recommendation) -> service_pb2.Recommendation:
    """One host with its score."""
    return service_pb2.Recommendation(
        host=value.host.id,
        host_name=value.host.name,
        score=value.score.total if value.score is not None else 0.0,
        reasons=value.reasons,
        findings=[finding(entry, value.host.id) for entry in value.answer.findings],
    )


def _format(number: int, argument: str) -> DiskFormat:
    try:
        return DiskFormat(number)
    except ValueError:
        raise InvalidArgument(f"there is no disk format {number}", argument=argument) from None

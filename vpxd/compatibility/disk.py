"""The disks that move: their formats and the room for them. Pure: no I/O, no clock, no logging.

Room is counted per datastore, over the home and all disks that go there. A thick disk takes its capacity; of a thin one
only what it is known to take counts for certain, and that it could grow beyond the free space is a warning.
"""

from runtime.faults import NoDiskSpace, NotSupported
from vpxd.compatibility.finding import Finding, FindingGroup, Move, error, warning
from vpxd.inventory.values import DiskFormat
from vpxd.relocation.relocation import HOME, FilePlace

_MIB = 1024 * 1024
_GROUP = FindingGroup.DATASTORE


def check(move: Move) -> tuple[Finding, ...]:
    """Each moved disk can have the format that it gets, and there is room for all that moves."""
    moved = [place for place in move.relocation.places if place.moved]
    formats = (_format(move, place) for place in moved if place.key != HOME)
    return (*(finding for finding in formats if finding is not None), *_room(move))


def _format(move: Move, place: FilePlace) -> Finding | None:
    vm = move.vm.config.name
    if place.format is DiskFormat.QCOW2 and (move.vm.live or place.source_format is not DiskFormat.QCOW2):
        reason = (
            "while it runs"
            if place.source_format is DiskFormat.QCOW2
            else "only images that came so are kept so"
        )
        fault = NotSupported(
            f"{place.label} of {vm} can't be moved into a qcow2 image: {reason}",
            feature="qcow2 as the destination's format",
        )
        also = " or power the VM off" if place.source_format is DiskFormat.QCOW2 else ""
        return error(fault, f"choose thin or thick for {place.label}{also}", _GROUP)
    if move.vm.live and place.source_format is DiskFormat.QCOW2 and not place.format_chosen:
        fault = NotSupported(
            f"{place.label} of {vm} is a qcow2 image; moved while it runs it becomes a thin disk",
            feature="qcow2 as the destination's format",
        )
        return warning(fault, "power the VM off first to keep the image as it is", _GROUP)
    return None


def _room(move: Move) -> tuple[Finding, ...]:
    needed, most = dict(move.relocation.needed_bytes), dict(move.relocation.most_bytes)
    found = []
    for uuid, certain in needed.items():
        store = move.destination.info.datastore_with_uuid(uuid)
        if store is None or not store.accessible:
            continue  # said already
        wanted = certain if certain > store.free_bytes else most[uuid]
        if wanted <= store.free_bytes:
            continue
        fault = NoDiskSpace(
            f"{store.name} has {store.free_bytes // _MIB} MiB free, {move.vm.config.name} "
            f"{'needs' if certain > store.free_bytes else 'may come to need'} {-(-wanted // _MIB)} MiB there",
            datastore=store.name,
            requested_bytes=wanted,
            free_bytes=store.free_bytes,
        )
        if certain > store.free_bytes:
            found.append(
                error(fault, f"free space on {store.name}, or choose thin disks or another datastore", _GROUP)
            )
        else:
            found.append(warning(fault, f"watch the free space of {store.name}: thin disks grow", _GROUP))
    return tuple(found)

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
    vm, was_image = move.vm.config.name, place.source_format is DiskFormat.QCOW2
    keeps_images = not move.vm.live and not move.changes_host
    when = "while it runs" if move.vm.live else "to another host"
    feature = "qcow2 as the destination's format"
    if place.format is DiskFormat.QCOW2 and not (keeps_images and was_image):
        reason = when if was_image else "only images that came so are kept so"
        fault = NotSupported(f"{place.label} of {vm} can't be moved into a qcow2 image: {reason}", feature)
        also = ", or move it within its host while the VM is off" if was_image else ""
        return error(fault, f"choose thin or thick for {place.label}{also}", _GROUP)
    if was_image and not keeps_images and not place.format_chosen:
        fault = NotSupported(
            f"{place.label} of {vm} is a qcow2 image; moved {when} it becomes a thin disk", feature
        )
        return warning(fault, "an image is kept as it is within its host while the VM is off", _GROUP)
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

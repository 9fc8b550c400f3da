"""The datastores of the home and the disks, now and afterwards. Pure: no I/O, no clock, no logging.

A datastore is the same one where its uuid is the same. For what stays its name must be the same too, because paths
carry the name.

    stays, the host changes   the destination sees and can access it, under the same name
    moves                     the source can read it where it is, the destination can write it where it goes
    boot files                of a VM that boots a kernel directly: they never move, so the destination must see them
"""

from collections.abc import Callable, Iterable

from runtime.faults import FileAlreadyExists, InaccessibleDatastore
from vpxd.compatibility.finding import Finding, FindingGroup, HostFacts, Move, error, warning
from vpxd.inventory.live import datastore_of
from vpxd.relocation.relocation import HOME, FilePlace

_GROUP = FindingGroup.DATASTORE


def check(move: Move) -> tuple[Finding, ...]:
    """Everything of the VM can be where it will be, and can be read where it is."""
    places = move.relocation.places
    found: list[Finding] = []
    if move.changes_host:
        found += _each(move, [place for place in places if not place.moved], _staying)
        found += _boot_files(move)
    found += _each(move, [place for place in places if place.moved], _target)
    if move.relocation.moves_files:
        # What is read: the files that move, and the home, which says where they are; on one host all that the VM has.
        read = [place for place in places if place.moved or place.key == HOME or not move.changes_host]
        found += _each(move, read, _origin)
    return (*found, *_existing(move))


def words(places: Iterable[FilePlace]) -> str:
    """E.g. "the home and disk 2000"."""
    labels = [place.label for place in places]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _each(
    move: Move, places: list[FilePlace], check_one: Callable[[Move, tuple[FilePlace, ...]], Finding | None]
) -> list[Finding]:
    """One finding per datastore, whatever the number of files on it."""
    groups: dict[tuple[str, str, str, str], list[FilePlace]] = {}
    for place in places:
        moved = (place.source_name, place.source_uuid) if check_one is _origin else ("", "")
        groups.setdefault((place.name, place.uuid, *moved), []).append(place)
    found = (check_one(move, tuple(group)) for group in groups.values())
    return [finding for finding in found if finding is not None]


def _staying(move: Move, places: tuple[FilePlace, ...]) -> Finding | None:
    """Files that stay while the host changes. All are on one datastore."""
    host, place, what = move.destination, places[0], words(places)
    vm, name = move.vm.config.name, place.name
    store = host.info.datastore_with_uuid(place.uuid) if place.uuid else None
    if store is not None and store.accessible and store.name == name:
        return None
    move_too = f"move {what} too: choose a datastore that {host.name} sees"
    if not place.uuid:
        text = f"the datastore {name or '(none)'} with {what} of {vm} isn't known to its host"
        remedy = "mount the datastore on the VM's present host again"
    elif store is None:
        text = f"{host.name} doesn't see the datastore {name} that {what} of {vm} {_is(places)} on"
        remedy = f"{move_too}, or mount {name} on {host.name}"
    elif not store.accessible:
        text = f"{host.name} can't access the datastore {name} with {what} of {vm} now"
        remedy = f"repair the access of {host.name} to {name}, or {move_too}"
    else:
        text = f"{host.name} sees the datastore {name} with {what} of {vm} under another name: {store.name}"
        remedy = f"mount it as {name} on {host.name}, or {move_too}"
    return error(InaccessibleDatastore(text, datastore=name, host=host.name), remedy, _GROUP)


def _target(move: Move, places: tuple[FilePlace, ...]) -> Finding | None:
    """Files that move to one datastore."""
    host, name = move.destination, places[0].name
    store = host.info.datastore_with_uuid(places[0].uuid) if places[0].uuid else None
    if store is not None and store.accessible:
        return None
    problem = "can't access" if store is not None else "doesn't see"
    text = f"{host.name} {problem} the datastore {name} that {words(places)} of {move.vm.config.name} should go to"
    seen = ", ".join(sorted(entry.name for entry in host.info.datastores if entry.accessible)) or "none"
    remedy = f"choose a datastore that {host.name} can access ({seen}), or mount {name} on it"
    return error(InaccessibleDatastore(text, datastore=name, host=host.name), remedy, _GROUP)


def _origin(move: Move, places: tuple[FilePlace, ...]) -> Finding | None:
    """Files that are read from one datastore of the source."""
    host, name = move.source, places[0].source_name
    if host is None:
        return None
    store = host.info.datastore_named(name)
    if store is not None and store.accessible:
        return None
    text = f"{host.name} can't access the datastore {name or '(none)'} with {words(places)} of {move.vm.config.name}"
    fault = InaccessibleDatastore(text, datastore=name, host=host.name)
    return error(fault, f"repair the access of {host.name} to {name}", FindingGroup.SOURCE)


def _boot_files(move: Move) -> list[Finding]:
    boot, host = move.vm.config.boot, move.destination
    names = {datastore_of(path) for path in (boot.kernel, boot.initrd) if path}
    found = []
    for name in sorted(names):
        if _same_store(move.source, host, name):
            continue
        text = (
            f"{host.name} doesn't see the datastore {name} with the kernel that {move.vm.config.name} boots"
        )
        fault = InaccessibleDatastore(text, datastore=name, host=host.name)
        remedy = f"mount {name} on {host.name}, or keep boot files on a datastore that every host sees"
        found.append(
            error(fault, remedy, _GROUP)
            if move.vm.live
            else warning(fault, f"it can't be powered on there: {remedy}", _GROUP)
        )
    return found


def _same_store(source: HostFacts | None, destination: HostFacts, name: str) -> bool:
    """Whether the destination can access the source's datastore of this name, under this name."""
    there = destination.info.datastore_named(name)
    if there is None or not there.accessible:
        return False
    here = source.info.datastore_named(name) if source is not None else None
    return here is None or here.uuid == there.uuid


def _existing(move: Move) -> list[Finding]:
    """Files of other VMs that have the name which a moved file would get."""
    relocation = move.relocation
    wanted = {disk.key: disk.path for disk in relocation.destination_vm.disks}
    wanted[HOME] = relocation.destination_home
    found = []
    for place in relocation.places:
        path = wanted[place.key]
        owner = move.surroundings.taken.get((place.uuid, path.partition("]")[2].strip()))
        if place.moved and place.uuid and owner is not None:
            whose = f"belongs to {owner}" if owner else "is there already"
            text = f"{path}, where {place.label} of {move.vm.config.name} should go, {whose}"
            away = "" if owner else "delete the file, "
            remedy = f"{away}rename {move.vm.config.name}, or choose another datastore"
            found.append(error(FileAlreadyExists(text, path=path), remedy, _GROUP))
    return found


def _is(places: tuple[FilePlace, ...]) -> str:
    return "is" if len(places) == 1 else "are"

"""Storage policies of the home and the disks, as they are afterwards. Pure: no I/O, no clock, no logging.

What moves, or gets another policy, must satisfy it. What stays under the policy that it has is no worse than before: a
warning.
"""

from dataclasses import replace

from vpxd.compatibility.finding import Finding, Move
from vpxd.inventory.records import VmPolicies
from vpxd.relocation.relocation import HOME, FilePlace
from vpxd.storage.policy import DatastoreFacts, DiskFacts, findings


def check(move: Move) -> tuple[Finding, ...]:
    """The datastores that the home and the disks are on afterwards are what their policies ask for."""
    before = _by_key(move.vm.policies or VmPolicies(move.vm.id))
    after = _by_key(move.relocation.policies)
    groups: dict[tuple[str, str, bool], list[FilePlace]] = {}
    for place in move.relocation.places:
        name = after.get(place.key, "")
        chosen = place.moved or name != before.get(place.key, "")
        if name and place.uuid:
            groups.setdefault((name, place.uuid, chosen), []).append(place)
    return tuple(
        finding
        for (name, uuid, chosen), places in groups.items()
        for finding in _of_one(move, name, uuid, places, chosen=chosen)
    )


def _of_one(
    move: Move, name: str, uuid: str, places: list[FilePlace], *, chosen: bool
) -> tuple[Finding, ...]:
    """What speaks against these files under one policy on one datastore."""
    policy = move.surroundings.policies.get(name)
    if policy is None:
        return ()  # forgotten since: it asks for nothing
    host, record = move.destination, move.surroundings.datastores.get(uuid)
    store = host.info.datastore_with_uuid(uuid)
    if store is None:
        return ()  # said already
    datastore = DatastoreFacts(
        id=record.id if record is not None else "",
        name=store.name,
        tags=record.tags if record is not None else (),
        capacity_bytes=store.capacity_bytes,
        free_bytes=store.free_bytes,
        hosts=move.surroundings.seen_by.get(uuid, 0),
    )
    formats = {disk.key: disk.format for disk in move.relocation.destination_vm.disks}
    disks = tuple(
        DiskFacts(place.key, formats[place.key], place.needed_bytes)
        if place.key != HOME
        else DiskFacts(HOME, new_bytes=place.needed_bytes)
        for place in places
    )
    found = findings(policy, datastore, disks)
    return found if chosen else tuple(replace(finding, error=False) for finding in found)


def _by_key(policies: VmPolicies) -> dict[int, str]:
    return {HOME: policies.home, **dict(policies.disks)}

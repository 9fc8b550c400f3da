"""The step that asks for the storage: format, policy and datastore, of all files together or disk by disk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proto.vim.v1 import vm_config_pb2
from vpxd.cli.disk_format import format_text
from vpxd.cli.quantities import bytes_text
from vpxd.cli.wizard.choices import NO_POLICY, FilesChoice
from vpxd.cli.wizard.dialog import Option
from vpxd.cli.wizard.offers import DatastoreOffer, datastores, destinations
from vpxd.cli.wizard.steps import Tour
from vpxd.cli.wizard.world import Policies

FORMATS = (
    (vm_config_pb2.DISK_FORMAT_UNSPECIFIED, "same format as source", "as each disk is now"),
    (vm_config_pb2.DISK_FORMAT_THIN, "thin", "blocks are taken when they are first written"),
    (
        vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED,
        "thick lazy zeroed",
        "all blocks are taken at once, zeroed at first use",
    ),
    (
        vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED,
        "thick eager zeroed",
        "all blocks are taken and zeroed at once",
    ),
)


@dataclass(frozen=True)
class _Subject:
    """What is placed: everything, the home, or a disk. `policies`: those that it has now.

    `present`: the datastore that it is on, where it may stay; empty: staying isn't offered.
    """

    label: str
    policies: tuple[str, ...]
    present: str = ""
    has_format: bool = True


@dataclass(frozen=True)
class _Storage:
    """What there is to choose from."""

    offers: Sequence[DatastoreOffer]
    hosts: int
    policies: Policies


async def ask_storage(tour: Tour) -> None:
    """Where the home and the disks go, and as what."""
    storage = await _storage(tour)
    vm = tour.choices.vm
    if vm.config.disks:
        modes = [
            Option(False, ("together", "the home and all disks on one datastore, in one format")),
            Option(True, ("configure per disk", "each disk has its own datastore, format and policy")),
        ]
        per_disk = await tour.dialog.choose("Place the files", ("FILES", ""), modes, tour.choices.per_disk)
        tour.choices = replace(tour.choices, per_disk=per_disk)
    present = storage.policies.present
    of_disks = [present.disk_policies.get(disk.key, "") for disk in vm.config.disks]
    if not tour.choices.per_disk:
        everything = _Subject(
            "the virtual machine", (present.home_policy, *of_disks), "", bool(vm.config.disks)
        )
        await _ask_all(tour, storage, everything)
        return
    home = _Subject("the home", (present.home_policy,), _datastore_of(vm.home), has_format=False)
    tour.choices = replace(tour.choices, files=replace(tour.choices.files, format=0))
    await _ask_all(tour, storage, home)
    for disk, policy in zip(vm.config.disks, of_disks, strict=True):
        subject = _Subject(f"disk {disk.key}", (policy,), _datastore_of(disk.path))
        tour.dialog.tell()
        tour.dialog.tell(
            f"Disk {disk.key}: {disk.path}, {bytes_text(disk.capacity_bytes)}, {format_text(disk.format)}"
        )
        await _ask_disk(tour, storage, subject, disk.key)


async def _storage(tour: Tour) -> _Storage:
    choices = tour.choices
    hosts = await tour.world.hosts()
    cluster = choices.cluster if choices.moves_compute else ""
    there = destinations(hosts, await tour.world.clusters(), choices.destination_host, cluster)
    return _Storage(datastores(there), len(there), await tour.world.policies(choices.vm.id))


async def _ask_all(tour: Tour, storage: _Storage, subject: _Subject) -> None:
    """Of everything, or of the home: kept in `choices.files`."""

    def keep(files: FilesChoice) -> None:
        tour.choices = replace(tour.choices, files=files)

    files = tour.choices.files
    if subject.has_format:
        files = replace(files, format=await _ask_format(tour, subject, files.format))
        keep(files)
    files = replace(files, policy=await _ask_policy(tour, storage, subject, files.policy))
    keep(files)
    keep(replace(files, datastore=await _ask_datastore(tour, storage, subject, files)))


async def _ask_disk(tour: Tour, storage: _Storage, subject: _Subject, key: int) -> None:
    """Of one disk: kept in `choices.disks`."""

    def keep(files: FilesChoice) -> None:
        tour.choices = replace(tour.choices, disks={**tour.choices.disks, key: files})

    files = tour.choices.disks.get(key, FilesChoice())
    files = replace(files, format=await _ask_format(tour, subject, files.format))
    keep(files)
    files = replace(files, policy=await _ask_policy(tour, storage, subject, files.policy))
    keep(files)
    keep(replace(files, datastore=await _ask_datastore(tour, storage, subject, files)))


async def _ask_format(tour: Tour, subject: _Subject, current: int) -> int:
    options = [Option(int(number), (name, text)) for number, name, text in FORMATS]
    if all(current != number for number, _, _ in FORMATS):
        options.append(Option(current, (format_text(current), "")))
    question = f"Virtual disk format of {subject.label}"
    return await tour.dialog.choose(question, ("FORMAT", "MEANS"), options, current)


async def _ask_policy(tour: Tour, storage: _Storage, subject: _Subject, current: str) -> str:
    now = ", ".join(dict.fromkeys(policy or "none" for policy in subject.policies))
    options = [
        Option("", ("keep", f"now: {now}")),
        Option(NO_POLICY, ("none", "no policy afterwards")),
        *(Option(policy.name, (policy.name, policy.description)) for policy in storage.policies.known),
    ]
    question = f"VM storage policy of {subject.label}"
    return await tour.dialog.choose(question, ("POLICY", ""), options, current)


async def _ask_datastore(tour: Tour, storage: _Storage, subject: _Subject, files: FilesChoice) -> str:
    """Datastores in two groups, by the policy that holds afterwards; one of either may be chosen."""
    named = subject.policies if not files.policy else (files.policy,)
    asked_for = [policy for policy in dict.fromkeys(named) if policy not in ("", NO_POLICY)]
    misfits = [await tour.world.misfits(policy) for policy in asked_for]
    rows = [(offer, offer.misfit(storage.policies.datastore_ids, misfits)) for offer in storage.offers]
    rows.sort(key=lambda row: (bool(row[1]), row[0].name))
    options = [
        Option(offer.name, _row(offer, storage.hosts), _heading(asked_for, reason), reason)
        for offer, reason in rows
    ]
    if subject.present:
        heading = options[0].heading if options else ""
        options.insert(0, Option("", ("stay", f"on {subject.present}"), heading))
    if not options:
        tour.dialog.tell("No datastore can be reached there.")
    current = files.datastore
    if not current and not subject.present:
        current = _datastore_of(tour.choices.vm.home)
    columns = ("DATASTORE", "FREE", "CAPACITY", "HOSTS" if storage.hosts > 1 else "")
    return await tour.dialog.choose(f"Datastore of {subject.label}", columns, options, current)


def _heading(policies: Sequence[str], reason: str) -> str:
    if not policies:
        return ""
    return f"{'Incompatible' if reason else 'Compatible'} with {', '.join(policies)}"


def _row(offer: DatastoreOffer, hosts: int) -> tuple[str, ...]:
    on = f"{offer.hosts} of {hosts}" if hosts > 1 else ""
    return (offer.name, bytes_text(offer.free_bytes), bytes_text(offer.capacity_bytes), on)


def _datastore_of(path: str) -> str:
    """ "local" of "[local] web01/web01.vmdk"."""
    return path[1:].partition("]")[0] if path.startswith("[") else ""


def policy_text(policy: str) -> str:
    """For the summary."""
    return {"": "kept", NO_POLICY: "none"}.get(policy, policy)


def files_text(files: FilesChoice, *, has_format: bool = True) -> str:
    """ "to local, thin, policy gold"."""
    parts = [f"to {files.datastore}" if files.datastore else "stays on its datastore"]
    if has_format:
        parts.append(format_text(files.format) if files.format else "same format as source")
    parts.append(f"policy {policy_text(files.policy)}")
    return ", ".join(parts)

"""The steps that ask for the VM, the migration type, the compute resource and the priority."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2
from vpxd.cli.quantities import bytes_text
from vpxd.cli.wizard.choices import Choices, MigrationType
from vpxd.cli.wizard.dialog import Dialog, Option
from vpxd.cli.wizard.world import World
from vpxd.cli.wording import enum_text, or_dash

if TYPE_CHECKING:
    from rich.console import Console

HIGH_TEXT = "reserves a vCPU on both hosts and isn't started without it; first in the queue"
DEFAULT_TEXT = "reserves nothing, takes longer on a busy host; in the queue as it comes"
LOW_TEXT = "as default, and behind all others in the queue"
PRIORITIES = (
    (spec_pb2.PRIORITY_HIGH, "high", HIGH_TEXT),
    (spec_pb2.PRIORITY_DEFAULT, "default", DEFAULT_TEXT),
    (spec_pb2.PRIORITY_LOW, "low", LOW_TEXT),
)
VERIFY_MODES = (
    (spec_pb2.VERIFY_MODE_OFF, "off", "nothing is compared"),
    (
        spec_pb2.VERIFY_MODE_AFTER_RESUME,
        "after resume",
        "every page of both memories, while the destination runs",
    ),
    (
        spec_pb2.VERIFY_MODE_BEFORE_RESUME,
        "before resume",
        "every page, inside the stun, which grows with the memory",
    ),
)
ENCRYPTION_MODES = (
    (spec_pb2.ENCRYPTION_MODE_REQUIRED, "required", "the vMotion streams are encrypted"),
    (spec_pb2.ENCRYPTION_MODE_DISABLED, "disabled", "memory and disks go over the network as they are"),
)
_ADVANCED = -1


@dataclass
class Tour:
    """What a step works with; it puts what is answered into `choices` at once, so that "back" keeps it."""

    console: "Console"
    dialog: Dialog
    world: World
    choices: Choices


async def ask_vm(tour: Tour) -> None:
    """Which VM."""
    vms = await tour.world.vms()
    if not vms:
        tour.dialog.tell("There are no VMs.")
    columns = ("VM", "ID", "HOST", "POWER", "MEMORY", "DISKS", "NICS")
    options = [
        Option(
            vm.id,
            (
                vm.name,
                vm.id,
                or_dash(vm.host_name),
                enum_text(host_pb2.PowerState, vm.power_state),
                bytes_text(vm.config.ram_bytes),
                str(len(vm.config.disks)),
                str(len(vm.config.nics)),
            ),
        )
        for vm in vms
    ]
    chosen = await tour.dialog.choose("Virtual machine", columns, options, tour.choices.vm.id)
    tour.choices = tour.choices.of_vm(next(vm for vm in vms if vm.id == chosen))


async def ask_type(tour: Tour) -> None:
    """Which migration type."""
    texts = {
        MigrationType.COMPUTE: "to another host or cluster",
        MigrationType.STORAGE: "to another datastore or disk format",
        MigrationType.BOTH: "to another host or cluster, and another datastore",
    }
    options = [Option(kind, (kind.value, text)) for kind, text in texts.items()]
    kind = await tour.dialog.choose("Migration type", ("TYPE", "MOVES"), options, tour.choices.type)
    tour.choices = replace(tour.choices, type=kind)


async def ask_compute(tour: Tour) -> None:
    """Which host, or which cluster, whose placement chooses then."""
    hosts, clusters = await tour.world.hosts(), await tour.world.clusters()
    names = {cluster.id: cluster.name for cluster in clusters}
    columns = ("NAME", "STATE", "CPU", "VCPUS", "MEMORY RESERVED", "VMS", "")
    options = [
        *(
            Option(
                ("host", host.name),
                _host_row(host, here=host.name == tour.choices.vm.host_name),
                f"Hosts of {names.get(host.cluster, host.cluster)}",
            )
            for host in sorted(hosts, key=lambda host: (names.get(host.cluster, ""), host.name))
        ),
        *(
            Option(("cluster", cluster.name), _cluster_row(cluster, hosts), "Clusters")
            for cluster in clusters
        ),
    ]
    choices = tour.choices
    current = ("cluster", choices.cluster) if choices.cluster else ("host", choices.host)
    kind, name = await tour.dialog.choose("Compute resource", columns, options, current)
    host, cluster = (name, "") if kind == "host" else ("", name)
    tour.choices = replace(choices, host=host, cluster=cluster)


def _host_row(host: inventory_pb2.Host, *, here: bool) -> tuple[str, ...]:
    return (
        host.name,
        enum_text(host_pb2.HostConnectionState, host.connection_state),
        *_load([host]),
        "the VM is here" if here else "",
    )


def _cluster_row(cluster: inventory_pb2.Cluster, hosts: Sequence[inventory_pb2.Host]) -> tuple[str, ...]:
    of_it = [host for host in hosts if host.cluster == cluster.id]
    count = f"{len(of_it)} host{'' if len(of_it) == 1 else 's'}"
    return (cluster.name, count, *_load(of_it), "let the cluster choose")


def _load(hosts: Sequence[inventory_pb2.Host]) -> tuple[str, str, str, str]:
    cores = sum(host.info.cpu_cores for host in hosts)
    cpu = sum(host.usage.cpu_percent for host in hosts) / cores if cores else 0.0
    reserved = bytes_text(sum(host.usage.memory_reserved_bytes for host in hosts))
    memory = bytes_text(sum(host.info.memory_bytes for host in hosts))
    vcpus = sum(host.usage.vcpus_reserved for host in hosts)
    capacity = sum(host.info.vcpu_capacity for host in hosts)
    vms = sum(host.vm_count for host in hosts)
    return f"{cpu:.0f} %", f"{vcpus} of {capacity}", f"{reserved} of {memory}", str(vms)


async def ask_priority(tour: Tour) -> None:
    """Which priority; under "advanced" verification and encryption."""
    while True:
        options = tour.choices.options
        offered = [Option(int(number), (name, text)) for number, name, text in PRIORITIES]
        advanced = f"verification {name_of(VERIFY_MODES, options.verify)}, "
        advanced += f"encryption {name_of(ENCRYPTION_MODES, options.encryption)}"
        offered.append(Option(_ADVANCED, ("advanced", advanced)))
        chosen = await tour.dialog.choose(
            "vMotion priority", ("PRIORITY", "MEANS"), offered, options.priority or spec_pb2.PRIORITY_DEFAULT
        )
        if chosen != _ADVANCED:
            tour.choices = replace(tour.choices, options=with_option(options, "priority", chosen))
            return
        await _ask_advanced(tour)


async def _ask_advanced(tour: Tour) -> None:
    for question, title, name, modes in (
        ("Verification of the memory", "VERIFICATION", "verify", VERIFY_MODES),
        ("Encryption of the vMotion streams", "ENCRYPTION", "encryption", ENCRYPTION_MODES),
    ):
        options = [Option(int(number), (word, text)) for number, word, text in modes]
        present = getattr(tour.choices.options, name) or modes[0][0]
        chosen = await tour.dialog.choose(question, (title, "MEANS"), options, present)
        tour.choices = replace(tour.choices, options=with_option(tour.choices.options, name, chosen))


def name_of(modes: Sequence[tuple[int, str, str]], number: int) -> str:
    """The word for a mode; unset is the first one."""
    return next((word for known, word, _ in modes if known == number), modes[0][1])


def with_option(options: spec_pb2.MigrationOptions, name: str, value: int) -> spec_pb2.MigrationOptions:
    """The options with one of them changed."""
    changed = spec_pb2.MigrationOptions()
    changed.CopyFrom(options)
    setattr(changed, name, value)
    return changed

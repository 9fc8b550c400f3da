"""`vpx vm`: create, register, list, show, reconfigure. The others: vm_power.py, vm_console.py, vm_migrate.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from vpxd.cli.command import command
from vpxd.cli.completion import datastore_names, host_names, network_names, vm_names
from vpxd.cli.disk_format import format_text, parse_new_disks
from vpxd.cli.errors import UsageError
from vpxd.cli.output import Column, ColumnTable, details_of, table_of
from vpxd.cli.quantities import bytes_text, parse_size, seconds_text
from vpxd.cli.session import Session
from vpxd.cli.wording import enum_text, or_dash

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Virtual machines: create, run, look at, migrate.")

DEFAULT_KERNEL = "[shared] images/vmlinuz"
DEFAULT_INITRD = "[shared] images/initrd.img"
DEFAULT_COMMAND_LINE = "console=ttyS0 panic=-1"

VmName = Annotated[str, typer.Argument(metavar="VM", help="Name or id (vm-12).", autocompletion=vm_names)]
HostOption = Annotated[
    str,
    typer.Option(
        "--host", help="Host, by name or id. [default: placement chooses]", autocompletion=host_names
    ),
]


@dataclass(frozen=True)
class CreateVm:
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new VM's name.")]
    ram: Annotated[str, typer.Option("--ram", metavar="SIZE", help="Memory, a multiple of 2MiB.")] = "512MiB"
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, max=255, help="Virtual CPUs.")] = 1
    datastore: Annotated[
        str,
        typer.Option("--datastore", help="Where its home folder is made.", autocompletion=datastore_names),
    ] = "shared"
    kernel: Annotated[str, typer.Option("--kernel", metavar="PATH", help="Datastore path of the kernel.")] = (
        DEFAULT_KERNEL
    )
    initrd: Annotated[str, typer.Option("--initrd", metavar="PATH", help="Datastore path of the initrd.")] = (
        DEFAULT_INITRD
    )
    cmdline: Annotated[str, typer.Option("--cmdline", metavar="TEXT", help="Kernel command line.")] = (
        DEFAULT_COMMAND_LINE
    )
    boot_disk: Annotated[
        bool, typer.Option("--boot-disk", help="Boot from its first disk: no kernel, initrd, command line.")
    ] = False
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="SIZE[:FORMAT[:DATASTORE]]",
            help='A new disk (10GiB:thin:local; thin, lazy or eager), or "[local] a.vmdk"; can be repeated.',
        ),
    ] = None
    nic: Annotated[
        list[str] | None,
        typer.Option(
            "--nic", metavar="NETWORK", help="A NIC on it; can be repeated.", autocompletion=network_names
        ),
    ] = None
    host: HostOption = ""
    machine_type: Annotated[
        str, typer.Option("--machine-type", help="Versioned machine (pc-q35-7.2). [default: chosen]")
    ] = ""
    cpu_model: Annotated[str, typer.Option("--cpu-model", help="CPU model. [default: chosen]")] = ""
    annotation: Annotated[str, typer.Option("--annotation", metavar="TEXT", help="A note for people.")] = ""


@command(app, "create", CreateVm, task=True)
async def create_vm(session: Session, arguments: CreateVm) -> None:
    """Create a VM, powered off."""
    from vpxd.cli.task_progress import finish

    config = vm_config_pb2.VmConfig(
        name=arguments.name,
        vcpus=arguments.vcpus,
        ram_bytes=size_of(arguments.ram, "--ram"),
        machine_type=arguments.machine_type,
        cpu_model=arguments.cpu_model,
        annotation=arguments.annotation,
        boot=_boot(arguments),
        disks=_new_disks(arguments),
        nics=[
            vm_config_pb2.NetworkAdapter(network=network, connected=True) for network in arguments.nic or ()
        ],
    )
    request = service_pb2.CreateVmRequest(config=config, datastore=arguments.datastore, host=arguments.host)
    async with session.connect() as client:
        task = await client.call(client.stub.CreateVm, request, session.call_timeout_s)
        await finish(session, client, task, f"{arguments.name} is created: {{result}}.")


def _boot(arguments: CreateVm) -> vm_config_pb2.Boot:
    """:raises UsageError: it is to boot from a disk that it hasn't."""
    if not arguments.boot_disk:
        return vm_config_pb2.Boot(
            kernel=arguments.kernel, initrd=arguments.initrd, kernel_command_line=arguments.cmdline
        )
    if not arguments.disk:
        raise UsageError("--boot-disk without a --disk: there is nothing to boot from.")
    return vm_config_pb2.Boot()


def _new_disks(arguments: CreateVm) -> list[vm_config_pb2.VirtualDisk]:
    """:raises UsageError: one can't be."""
    try:
        return parse_new_disks(arguments.name, arguments.disk or ())
    except ValueError as error:
        raise UsageError(f"--disk: {error}.") from error


@dataclass(frozen=True)
class RegisterVm:
    home: Annotated[str, typer.Argument(metavar="PATH", help='Its .vmx file: "[shared] web01/web01.vmx".')]
    host: HostOption = ""


@command(app, "register", RegisterVm, task=True)
async def register_vm(session: Session, arguments: RegisterVm) -> None:
    """Register a VM from its .vmx file on a datastore."""
    from vpxd.cli.task_progress import finish

    request = service_pb2.RegisterVmRequest(home=arguments.home, host=arguments.host)
    async with session.connect() as client:
        task = await client.call(client.stub.RegisterVm, request, session.call_timeout_s)
        await finish(session, client, task, f"{arguments.home} is registered: {{result}}.")


@dataclass(frozen=True)
class ListVms:
    host: Annotated[
        str, typer.Option("--host", help="Only those on this host.", autocompletion=host_names)
    ] = ""
    name: Annotated[str, typer.Option("--name", help="Only those of exactly this name.")] = ""


@command(app, "list", ListVms)
async def list_vms(session: Session, arguments: ListVms) -> None:
    """All VMs, with where they are and what they use."""
    request = service_pb2.ListVmsRequest(host=arguments.host, name=arguments.name)
    async with session.connect() as client:
        answer = await client.call(client.stub.ListVms, request, session.call_timeout_s)
    session.show_list(answer.vms, _vms_table, "No VMs.")


def _vms_table(vms: Sequence[inventory_pb2.Vm]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("ID"),
        Column("HOST"),
        Column("POWER"),
        Column("DOES"),
        Column("VCPUS", "right"),
        Column("RAM", "right"),
        Column("USED", "right"),
        Column("CPU", "right"),
        Column("UPTIME", "right"),
        Column("LOCKED BY"),
    )
    rows = [
        (
            vm.name,
            vm.id,
            or_dash(vm.host_name),
            power_text(vm),
            enum_text(host_pb2.ExecutionState, vm.execution_state),
            str(vm.config.vcpus),
            bytes_text(vm.config.ram_bytes),
            bytes_text(vm.memory_used_bytes) if vm.memory_used_bytes else "-",
            f"{vm.cpu_percent:.0f} %" if is_on(vm) else "-",
            seconds_text(vm.uptime_s) if is_on(vm) else "-",
            or_dash(vm.locked_by),
        )
        for vm in vms
    ]
    return table_of(columns, rows)


@dataclass(frozen=True)
class ShowVm:
    vm: VmName


@command(app, "show", ShowVm)
async def show_vm(session: Session, arguments: ShowVm) -> None:
    """One VM in full."""
    async with session.connect() as client:
        vm = await client.call(
            client.stub.GetVm, service_pb2.GetVmRequest(vm=arguments.vm), session.call_timeout_s
        )
    session.show(vm, _vm_details)


def _vm_details(vm: inventory_pb2.Vm) -> "Table":
    config, boot = vm.config, vm.config.boot
    pairs = [
        ("Name", vm.name),
        ("Id", vm.id),
        ("UUID", config.uuid),
        ("Host", or_dash(vm.host_name)),
        ("Connection", enum_text(inventory_pb2.VmConnectionState, vm.connection_state)),
        ("Power", power_text(vm)),
        ("Does", enum_text(host_pb2.ExecutionState, vm.execution_state)),
        ("Locked by", or_dash(vm.locked_by)),
        ("Home", vm.home),
        ("vCPUs", f"{config.vcpus} ({or_dash(config.cpu_model)})"),
        ("Memory", f"{bytes_text(config.ram_bytes)}, {bytes_text(vm.memory_used_bytes)} populated"),
        ("CPU", f"{vm.cpu_percent:.0f} % of one core" if is_on(vm) else "-"),
        ("Uptime", seconds_text(vm.uptime_s) if is_on(vm) else "-"),
        ("Machine type", or_dash(config.machine_type)),
        ("Kernel", boot.kernel),
        ("Initrd", boot.initrd),
        ("Command line", boot.kernel_command_line),
        *[
            (
                f"Disk {disk.key}",
                f"{disk.path} ({bytes_text(disk.capacity_bytes)}, {format_text(disk.format)})",
            )
            for disk in config.disks
        ],
        *[
            (f"NIC {nic.key}", f"{nic.network} ({nic.mac}{'' if nic.connected else ', disconnected'})")
            for nic in config.nics
        ],
        ("Annotation", or_dash(config.annotation)),
        ("Change version", str(config.change_version)),
    ]
    return details_of([*pairs, ("Failure", vm.failure)] if vm.failure else pairs)


@dataclass(frozen=True)
class ReconfigureVm:
    """None: as it is."""

    vm: VmName
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None
    ram: Annotated[str | None, typer.Option("--ram", metavar="SIZE", help="Memory, a multiple of 2MiB.")] = (
        None
    )
    vcpus: Annotated[int | None, typer.Option("--vcpus", min=1, max=255, help="Virtual CPUs.")] = None
    kernel: Annotated[str | None, typer.Option("--kernel", metavar="PATH", help="Datastore path.")] = None
    initrd: Annotated[str | None, typer.Option("--initrd", metavar="PATH", help="Datastore path.")] = None
    cmdline: Annotated[str | None, typer.Option("--cmdline", metavar="TEXT", help="Kernel command line.")] = (
        None
    )
    machine_type: Annotated[str | None, typer.Option("--machine-type", help="Versioned machine.")] = None
    cpu_model: Annotated[str | None, typer.Option("--cpu-model", help="CPU model.")] = None
    annotation: Annotated[str | None, typer.Option("--annotation", metavar="TEXT", help="A note.")] = None


@command(app, "reconfigure", ReconfigureVm, task=True)
async def reconfigure_vm(session: Session, arguments: ReconfigureVm) -> None:
    """Change a powered-off VM; what isn't named stays as it is."""
    from vpxd.cli.task_progress import finish

    async with session.connect() as client:
        vm = await client.call(
            client.stub.GetVm, service_pb2.GetVmRequest(vm=arguments.vm), session.call_timeout_s
        )
        # The whole configuration goes back with the version that was read: a change in between is refused, not lost.
        request = service_pb2.ReconfigureVmRequest(vm=vm.id, config=changed(vm.config, arguments))
        task = await client.call(client.stub.ReconfigureVm, request, session.call_timeout_s)
        await finish(session, client, task, f"{vm.name} is reconfigured.")


def changed(config: vm_config_pb2.VmConfig, arguments: ReconfigureVm) -> vm_config_pb2.VmConfig:
    """The configuration with what was named.

    :raises UsageError: nothing was, or --ram is no size.
    """
    new = vm_config_pb2.VmConfig()
    new.CopyFrom(config)
    for option in ("name", "vcpus", "machine_type", "cpu_model", "annotation"):
        value = getattr(arguments, option)
        if value is not None:
            setattr(new, option, value)
    if arguments.ram is not None:
        new.ram_bytes = size_of(arguments.ram, "--ram")
    if arguments.kernel is not None:
        new.boot.kernel = arguments.kernel
    if arguments.initrd is not None:
        new.boot.initrd = arguments.initrd
    if arguments.cmdline is not None:
        new.boot.kernel_command_line = arguments.cmdline
    if new == config:
        raise UsageError("Nothing to change was named.", "see: vpx vm reconfigure --help")
    return new


def size_of(text: str, option: str) -> int:
    """:raises UsageError: it is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from error


def is_on(vm: inventory_pb2.Vm) -> bool:
    """Whether it is powered on."""
    return vm.power_state == host_pb2.POWER_STATE_POWERED_ON


def power_text(vm: inventory_pb2.Vm) -> str:
    """The power state; in doubt the connection state, because a silent host's word is an old one."""
    power = enum_text(host_pb2.PowerState, vm.power_state)
    if vm.connection_state in (
        inventory_pb2.VM_CONNECTION_STATE_CONNECTED,
        inventory_pb2.VM_CONNECTION_STATE_UNSPECIFIED,
    ):
        return power
    return f"{power}? ({enum_text(inventory_pb2.VmConnectionState, vm.connection_state)})"

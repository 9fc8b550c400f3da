"""`vpx vm migrate`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import task_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from vpxd.cli.command import command
from vpxd.cli.completion import host_names
from vpxd.cli.errors import UsageError
from vpxd.cli.quantities import parse_rate
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import VmName, app

if TYPE_CHECKING:
    from vpxd.cli.client import VpxdClient


class Priority(StrEnum):
    """Migration priority."""

    DEFAULT = "default"
    HIGH = "high"
    LOW = "low"


_PRIORITIES = {
    Priority.DEFAULT: spec_pb2.PRIORITY_DEFAULT,
    Priority.HIGH: spec_pb2.PRIORITY_HIGH,
    Priority.LOW: spec_pb2.PRIORITY_LOW,
}


@dataclass(frozen=True)
class MigrateVm:
    vm: VmName
    host: Annotated[
        str,
        typer.Option("--host", help="Destination. [default: placement chooses]", autocompletion=host_names),
    ] = ""
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show every phase and pass, and tables at the end.")
    ] = False
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare every page of both memories, while the destination runs."),
    ] = False
    verify_before_resume: Annotated[
        bool,
        typer.Option("--verify-before-resume", help="Compare inside the stun: it grows with the memory."),
    ] = False
    plaintext: Annotated[bool, typer.Option("--plaintext", help="Don't encrypt the vMotion streams.")] = False
    streams: Annotated[
        int,
        typer.Option("--streams", min=0, max=16, help="Page channels. [default: chosen]", show_default=False),
    ] = 0
    switchover_goal_ms: Annotated[
        int,
        typer.Option(
            "--switchover-goal-ms",
            min=0,
            metavar="MS",
            help="Switch over when the rest can be sent in this time. [default: vpxd's]",
            show_default=False,
        ),
    ] = 0
    max_iterations: Annotated[
        int,
        typer.Option(
            "--max-iterations",
            min=0,
            metavar="N",
            help="Passes of pre-copy. [default: vpxd's]",
            show_default=False,
        ),
    ] = 0
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", metavar="RATE", help="Cap, such as 125MB/s. [default: none]")
    ] = ""
    tracer: Annotated[
        str,
        typer.Option("--tracer", metavar="NAME", help="pagemap_scan or hash_scan. [default: by the kernel]"),
    ] = ""
    priority: Annotated[Priority, typer.Option("--priority", help="Before or behind others.")] = (
        Priority.DEFAULT
    )


@command(app, "migrate", MigrateVm, task=True)
async def migrate_vm(session: Session, arguments: MigrateVm) -> None:
    """Move a VM to another host: live when it is on, its registration when it is off.

    Ctrl-C stops watching only; the migration goes on: `vpx task cancel` stops it.
    """
    from vpxd.cli.migration_view import final_words
    from vpxd.cli.task_progress import conclude, finish, finish_migration, wait_for_end

    options = options_of(arguments)
    if arguments.watch and not session.wait:
        raise UsageError("--watch and --no-wait contradict each other.")
    async with session.connect() as client:
        before = await client.call(
            client.stub.GetVm, service_pb2.GetVmRequest(vm=arguments.vm), session.call_timeout_s
        )
        request = service_pb2.MigrateVmRequest(vm=before.id, host=arguments.host, options=options)
        task = await client.call(client.stub.MigrateVm, request, session.call_timeout_s)
        if not session.wait:
            await finish(session, client, task, "")
            return
        # Progress on the wire is the same with and without --watch; what differs is how much of it is shown.
        if arguments.watch:
            title = f"{before.name}: {before.host_name} → {arguments.host or 'where placement puts it'}"
            ended = await finish_migration(session, client, task, title)
        else:
            ended = await wait_for_end(session, client, task)
        destination = await _host_now(session, client, before, ended)
        conclude(session, ended, final_words(before.name, before.host_name, destination, ended))


async def _host_now(
    session: Session, client: "VpxdClient", vm: inventory_pb2.Vm, task: task_pb2.TaskInfo
) -> str:
    """The name of the host that the VM is on now; of a failed migration it isn't asked."""
    if task.state != task_pb2.TASK_STATE_SUCCESS or session.json:
        return ""
    now = await client.call(client.stub.GetVm, service_pb2.GetVmRequest(vm=vm.id), session.call_timeout_s)
    return now.host_name


def options_of(arguments: MigrateVm) -> spec_pb2.MigrationOptions:
    """The options as the protocol has them.

    :raises UsageError: they contradict each other, or the bandwidth is no rate.
    """
    if arguments.verify and arguments.verify_before_resume:
        raise UsageError("Use either --verify or --verify-before-resume.")
    verify = spec_pb2.VERIFY_MODE_OFF
    if arguments.verify:
        verify = spec_pb2.VERIFY_MODE_AFTER_RESUME
    if arguments.verify_before_resume:
        verify = spec_pb2.VERIFY_MODE_BEFORE_RESUME
    plaintext, required = spec_pb2.ENCRYPTION_MODE_DISABLED, spec_pb2.ENCRYPTION_MODE_REQUIRED
    try:
        bandwidth = parse_rate(arguments.bandwidth) if arguments.bandwidth else 0
    except ValueError as error:
        raise UsageError(f"--bandwidth: {error}.") from error
    return spec_pb2.MigrationOptions(
        verify=verify,
        encryption=plaintext if arguments.plaintext else required,
        priority=_PRIORITIES[arguments.priority],
        switchover_goal_ms=arguments.switchover_goal_ms,
        max_iterations=arguments.max_iterations,
        streams=arguments.streams,
        bandwidth_bytes_per_s=bandwidth,
        tracer=arguments.tracer,
    )

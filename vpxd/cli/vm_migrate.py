"""`vpx vm migrate`: by flags, by a specification from a file, or by the wizard.

no flag says where to, a terminal on both sides, and none of --yes --watch --spec --check --print-spec -o json:
    the wizard asks (vpxd/cli/wizard)
--spec FILE: what the file says       else: what the flags say; what they don't, placement chooses
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime.faults import VimFault
from vpxd.cli.command import command
from vpxd.cli.errors import IncompatibleHosts, Interrupted, UsageError
from vpxd.cli.input_stream import read_all
from vpxd.cli.migrate_flags import MigrateVm, options_of, require_consistent, spec_of
from vpxd.cli.output import json_of, print_json
from vpxd.cli.relocate_spec import MAX_CHARS, parse, text_of
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import app

if TYPE_CHECKING:
    from vpxd.cli.client import VpxdClient

_STARTING = Interrupted(
    "Interrupted while it was being started.", "`vpx task list` shows whether it was, and goes on."
)


@command(app, "migrate", MigrateVm, task=True)
async def migrate_vm(session: Session, arguments: MigrateVm) -> None:
    """Move a VM to another host, other datastores, or both: live when it is on.

    On a terminal, with nothing said of where to, a wizard asks for everything; elsewhere placement chooses.
    Ctrl-C stops watching only; the migration goes on: `vpx task cancel` stops it.
    """
    require_consistent(arguments, wait=session.wait)
    if _wizard_asks(session, arguments):
        await _migrate_by_wizard(session, arguments)
        return
    request = await _request(arguments)
    if arguments.print_spec:
        text = text_of(request)
        parse(text)  # what is printed is taken back
        sys.stdout.write(text)
        return
    if not arguments.vm:
        raise UsageError("Which VM? Name it, or call this on a terminal without flags: then a wizard asks.")
    async with session.connect() as client:
        if arguments.check:
            await _check(session, client, arguments.vm, request)
            return
        vm = await _vm(session, client, arguments.vm)
        request.vm = vm.id
        task = await _start(session, client, request, relocate=bool(arguments.spec))
        await _follow(session, client, vm, task, spec=request.spec, watch=arguments.watch)


def _wizard_asks(session: Session, arguments: MigrateVm) -> bool:
    quiet = arguments.yes or arguments.watch or arguments.spec or arguments.check or arguments.print_spec
    if quiet or session.json or arguments.names_destination:
        return False
    return sys.stdin.isatty() and sys.stdout.isatty()


async def _migrate_by_wizard(session: Session, arguments: MigrateVm) -> None:
    """Flags that are there (--priority, --bandwidth, ...) are what the wizard begins with."""
    from vpxd.cli.wizard.choices import Choices
    from vpxd.cli.wizard.dialog import NOTHING_STARTED
    from vpxd.cli.wizard.wizard import Wizard

    options = options_of(arguments)
    nothing_started = session.interruption = Interrupted(NOTHING_STARTED)
    async with session.connect() as client:
        known = await _vm(session, client, arguments.vm) if arguments.vm else inventory_pb2.Vm()
        wizard = Wizard(session, client, Choices(vm=known, options=options), sys.stdin.fileno())
        while True:
            request = await wizard.run()
            try:
                task = await _start(session, client, request, relocate=True)
                break
            except VimFault as fault:  # something has changed since the last panel: nothing chosen is lost
                wizard.refused(fault)
                session.interruption = nothing_started
        await _follow(session, client, wizard.choices.vm, task, spec=request.spec, watch=session.wait)


async def _request(arguments: MigrateVm) -> service_pb2.RelocateVmRequest:
    """What the file says, or else the flags. :raises UsageError: either can't be."""
    if arguments.spec:
        return parse(await _spec_text(arguments.spec))
    return service_pb2.RelocateVmRequest(spec=spec_of(arguments), options=options_of(arguments))


async def _spec_text(name: str) -> str:
    """:raises UsageError: there is no such file, or it is no text."""
    try:
        if name == "-":
            data = await read_all(sys.stdin.fileno(), MAX_CHARS)
        else:
            with Path(name).open("rb") as file:  # noqa: ASYNC230 - a small local file, before anything runs
                data = file.read(MAX_CHARS + 1)
        return data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"--spec: {name} can't be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--spec: {name} is no text in UTF-8.") from error


async def _start(
    session: Session, client: "VpxdClient", request: service_pb2.RelocateVmRequest, *, relocate: bool
) -> task_pb2.TaskInfo:
    """Starts it. Of flags that name a host at most the rpc is MigrateVm, as ever."""
    session.interruption = _STARTING
    spec = request.spec
    if relocate or spec != service_pb2.RelocateSpec(host=spec.host):
        return await client.call(client.stub.RelocateVm, request, session.call_timeout_s)
    only_host = service_pb2.MigrateVmRequest(vm=request.vm, host=spec.host, options=request.options)
    return await client.call(client.stub.MigrateVm, only_host, session.call_timeout_s)


async def _follow(
    session: Session,
    client: "VpxdClient",
    before: inventory_pb2.Vm,
    task: task_pb2.TaskInfo,
    *,
    spec: service_pb2.RelocateSpec,
    watch: bool,
) -> None:
    """Shows the task to its end, unless --no-wait was given. :raises VimFault: the task's error."""
    from vpxd.cli.migration_view import final_words
    from vpxd.cli.task_progress import conclude, finish, finish_migration, wait_for_end

    if not session.wait:
        await finish(session, client, task, "")
        return
    # Progress on the wire is the same with and without --watch; what differs is how much of it is shown.
    if watch:
        title = f"{before.name}: {before.host_name} → {spec.host or 'where placement puts it'}"
        ended = await finish_migration(session, client, task, title)
    else:
        ended = await wait_for_end(session, client, task)
    destination = await _host_now(session, client, before, ended)
    if destination == before.host_name and (spec.datastore or spec.disks):
        conclude(session, ended, final_words(f"{before.name}'s storage", "", "", ended))
        return
    conclude(session, ended, final_words(before.name, before.host_name, destination, ended))


async def _check(
    session: Session, client: "VpxdClient", vm: str, request: service_pb2.RelocateVmRequest
) -> None:
    """Only the panel. :raises IncompatibleHosts: an error stands against every host that comes into question."""
    from vpxd.cli.wizard.panel import blocked, show_findings

    request.vm = vm
    where = request.spec.host or request.spec.cluster
    if not where:  # as placement does it: among the hosts of its own cluster
        request.spec.cluster = await _own_cluster(session, client, vm)
    answer = await client.call(client.stub.CheckRelocate, request, session.call_timeout_s)
    if session.json:
        print_json([json_of(host) for host in answer.hosts])
    else:
        show_findings(session.stdout, answer.hosts)
    if blocked(answer.hosts):
        raise IncompatibleHosts(f"{vm} can't migrate to {where or 'any host of its cluster'}.")


async def _own_cluster(session: Session, client: "VpxdClient", vm: str) -> str:
    """The id of the cluster that the VM's host is in; empty where it is on none."""
    found = await _vm(session, client, vm)
    hosts = await client.call(client.stub.ListHosts, service_pb2.ListHostsRequest(), session.call_timeout_s)
    return next((host.cluster for host in hosts.hosts if host.id == found.host), "")


async def _vm(session: Session, client: "VpxdClient", key: str) -> inventory_pb2.Vm:
    return await client.call(client.stub.GetVm, service_pb2.GetVmRequest(vm=key), session.call_timeout_s)


async def _host_now(
    session: Session, client: "VpxdClient", vm: inventory_pb2.Vm, task: task_pb2.TaskInfo
) -> str:
    """The name of the host that the VM is on now; of a failed migration it isn't asked."""
    if task.state != task_pb2.TASK_STATE_SUCCESS or session.json:
        return ""
    return (await _vm(session, client, vm.id)).host_name

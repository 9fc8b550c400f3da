"""`vpx vm check`: whether a VM could go there, and all that stands against it, in the groups of the Migrate wizard."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import task_pb2, vm_config_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.command import command
from vpxd.cli.completion import datastore_names, host_names, policy_names
from vpxd.cli.disk_format import NUMBER_OF, DiskFormatWord
from vpxd.cli.errors import IncompatibleHosts, UsageError
from vpxd.cli.fault_text import fault_name
from vpxd.cli.output import details_of, json_of, print_json, print_view
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import VmName, app

if TYPE_CHECKING:
    from rich.table import Table

GROUP_TEXT = {
    task_pb2.FINDING_GROUP_UNSPECIFIED: "other",
    task_pb2.FINDING_GROUP_SOURCE: "source",
    task_pb2.FINDING_GROUP_HOST: "host",
    task_pb2.FINDING_GROUP_RESOURCE_POOL: "resource pool",
    task_pb2.FINDING_GROUP_DATASTORE: "datastore",
    task_pb2.FINDING_GROUP_NETWORK: "network",
}


@dataclass(frozen=True)
class CheckVm:
    vm: VmName
    host: Annotated[
        str, typer.Option("--host", help="Only this host. [default: all]", autocompletion=host_names)
    ] = ""
    cluster: Annotated[str, typer.Option("--cluster", help="Only the hosts of this cluster.")] = ""
    datastore: Annotated[
        str,
        typer.Option(
            "--datastore", help="With its home and all its disks moved there.", autocompletion=datastore_names
        ),
    ] = ""
    format: Annotated[
        DiskFormatWord | None,
        typer.Option("--format", help="Of the moved disks. [default: same as source]", show_default=False),
    ] = None
    policy: Annotated[
        str,
        typer.Option("--policy", help='Storage policy; "-": none afterwards.', autocompletion=policy_names),
    ] = ""
    network: Annotated[
        list[str] | None,
        typer.Option("--network", metavar="FROM=TO", help="Port groups of its NICs; can be repeated."),
    ] = None


@command(app, "check", CheckVm)
async def check_vm(session: Session, arguments: CheckVm) -> None:
    """Say for each host whether the VM could move to it, and all that stands against it; changes nothing.

    Without options: the other hosts of its cluster. With --datastore its own host is checked, too.
    Exit status 5 when it can go nowhere (or not to the named host).
    """
    spec = spec_of(arguments)
    async with session.connect() as client:
        if spec == service_pb2.RelocateSpec(host=arguments.host):
            request = service_pb2.CheckMigrateRequest(vm=arguments.vm, host=arguments.host)
            answer = await client.call(client.stub.CheckMigrate, request, session.call_timeout_s)
        else:
            wanted = service_pb2.RelocateVmRequest(vm=arguments.vm, spec=spec)
            answer = await client.call(client.stub.CheckRelocate, wanted, session.call_timeout_s)
    if session.json:
        print_json([json_of(host) for host in answer.hosts])
    else:
        print_view(session.stdout, findings_view(answer.hosts))
    if all(any(finding.error for finding in host.findings) for host in answer.hosts):
        where = arguments.host or (
            f"any host of {arguments.cluster}" if arguments.cluster else "any other host"
        )
        raise IncompatibleHosts(f"{arguments.vm} can't migrate to {where}.")


def spec_of(arguments: CheckVm) -> service_pb2.RelocateSpec:
    """The relocation as the protocol has it. :raises UsageError: a --network that isn't FROM=TO."""
    networks = []
    for text in arguments.network or []:
        before, sign, after = text.partition("=")
        if not (before and sign and after):
            raise UsageError(f"--network takes FROM=TO, not {text!r}.")
        networks.append(service_pb2.NicMapping(from_network=before, network=after))
    disk_format = vm_config_pb2.DISK_FORMAT_UNSPECIFIED
    return service_pb2.RelocateSpec(
        host=arguments.host,
        cluster=arguments.cluster,
        datastore=arguments.datastore,
        format=NUMBER_OF[arguments.format] if arguments.format is not None else disk_format,
        policy=arguments.policy,
        networks=networks,
    )


def findings_view(hosts: Sequence[service_pb2.HostFindings]) -> "Table":
    """Hosts with their findings, group by group. Findings are sentences: folded, never shortened."""
    rows: list[tuple[str, str]] = []
    for host in hosts:
        rows.append((host.host_name, _summary(host.findings)))
        for group, name in GROUP_TEXT.items():
            label = f"  {name}"
            for finding in host.findings:
                if finding.group != group:
                    continue
                severity = "error" if finding.error else "warning"
                told = f"{severity}: {finding.fault.message} ({fault_name(finding.fault.type)})"
                rows.append((label, told))
                label = ""
                if finding.remedy:
                    rows.append(("", f"remedy: {finding.remedy}"))
    return details_of(rows)


def _summary(findings: Sequence[task_pb2.Finding]) -> str:
    errors = sum(finding.error for finding in findings)
    warnings = len(findings) - errors
    told = [
        f"{count} {word}{'s' if count > 1 else ''}"
        for count, word in ((errors, "error"), (warnings, "warning"))
        if count
    ]
    return ", ".join(told) or "ok"

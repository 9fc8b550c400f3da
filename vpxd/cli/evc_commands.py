"""`vpx cluster evc` and `vpx vm evc`: the CPU baselines of clusters and VMs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vpxd.v1 import clusters_pb2
from vpxd.cli.command import command
from vpxd.cli.errors import UsageError
from vpxd.cli.inventory_commands import clusters
from vpxd.cli.output import Column, ColumnTable, details_of, table_of
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import VmName
from vpxd.cli.vm_commands import app as vms
from vpxd.cli.wording import or_dash

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="EVC: the CPU features that a cluster's VMs may have.")
clusters.add_typer(app, name="evc")

ClusterName = Annotated[
    str, typer.Argument(metavar="[CLUSTER]", help="Name or id (domain-c1). [default: the first one]")
]
ClusterOption = Annotated[
    str, typer.Option("--cluster", help="Cluster, by name or id. [default: the first one]")
]
ModeArgument = Annotated[
    str, typer.Argument(metavar="MODE", help='A baseline ("intel-haswell"), or "none": see evc show.')
]
NONE = "none"


@dataclass(frozen=True)
class ShowEvc:
    cluster: ClusterName = ""


@command(app, "show", ShowEvc)
async def show_evc(session: Session, arguments: ShowEvc) -> None:
    """A cluster's mode, every mode that there is, and what stands against it."""
    async with session.connect() as client:
        request = clusters_pb2.GetEvcRequest(cluster=arguments.cluster)
        evc = await client.call(client.clusters.GetEvc, request, session.call_timeout_s)
        known = await client.call(
            client.clusters.ListEvcModes, clusters_pb2.ListEvcModesRequest(), session.call_timeout_s
        )
    modes = {mode.key: mode for mode in known.modes}
    session.show(evc, lambda told: _modes_table(told, modes))


@dataclass(frozen=True)
class SetEvc:
    mode: ModeArgument
    cluster: ClusterOption = ""


@command(app, "set", SetEvc)
async def set_evc(session: Session, arguments: SetEvc) -> None:
    """Set, raise, lower or ("none") disable a cluster's mode. Raising reaches a VM at its next power-on."""
    async with session.connect() as client:
        request = clusters_pb2.SetEvcRequest(cluster=arguments.cluster, mode=_mode(arguments.mode))
        evc = await client.call(client.clusters.SetEvc, request, session.call_timeout_s)
    session.show(evc, _mode_details)


@dataclass(frozen=True)
class CheckEvc:
    mode: ModeArgument
    cluster: ClusterOption = ""


@command(app, "check", CheckEvc)
async def check_evc(session: Session, arguments: CheckEvc) -> None:
    """What stands against a mode, host by host and VM by VM; nothing is changed."""
    async with session.connect() as client:
        request = clusters_pb2.GetEvcRequest(cluster=arguments.cluster)
        evc = await client.call(client.clusters.GetEvc, request, session.call_timeout_s)
    fit = next((fit for fit in evc.modes if fit.mode == arguments.mode), None)
    if fit is None:
        raise UsageError(f"There is no EVC mode {arguments.mode!r}.", "`vpx cluster evc show` lists them.")
    if fit.findings or session.json:
        session.show(fit, _findings_table)
    else:
        session.say(f"{arguments.mode} can be set: nothing stands against it.")


@dataclass(frozen=True)
class VmEvc:
    vm: VmName
    mode: Annotated[
        str, typer.Argument(metavar="[MODE]", help='A baseline, or "none". [default: only show]')
    ] = ""


@command(vms, "evc", VmEvc, task=True)
async def vm_evc(session: Session, arguments: VmEvc) -> None:
    """A VM's own EVC mode and the CPU that it runs on; with MODE: set it (the VM is powered off)."""
    from proto.vpxd.v1 import service_pb2
    from vpxd.cli.task_progress import finish

    async with session.connect() as client:
        if arguments.mode:
            request = clusters_pb2.SetVmEvcRequest(vm=arguments.vm, mode=_mode(arguments.mode))
            task = await client.call(client.clusters.SetVmEvc, request, session.call_timeout_s)
            done = f"{task.entity_name or arguments.vm}'s own EVC mode is {arguments.mode}."
            await finish(session, client, task, done)
            return
        found = await client.call(
            client.stub.GetVm, service_pb2.GetVmRequest(vm=arguments.vm), session.call_timeout_s
        )
    cpu = found.config.guest_cpu
    session.show(
        found,
        lambda vm: details_of(
            [
                ("Own EVC mode", or_dash(vm.config.evc_mode)),
                ("Runs under", or_dash(cpu.baseline) if cpu.model else "(powered off)"),
                ("CPU", or_dash(cpu.model or vm.config.cpu_model)),
                ("Features", or_dash(" ".join(cpu.features))),
            ]
        ),
    )


def _mode(text: str) -> str:
    return "" if text == NONE else text


def _modes_table(told: clusters_pb2.GetEvcResponse, modes: dict[str, clusters_pb2.EvcMode]) -> ColumnTable:
    columns = (Column("MODE"), Column("SET"), Column("CAN BE SET"), Column("ADDS", free_text=True))
    rows = []
    for fit in told.modes:
        stand = f"no: {len(fit.findings)} against it" if fit.findings else "yes"
        added = " ".join(modes[fit.mode].added_features) if fit.mode in modes else ""
        rows.append((fit.mode, "*" if fit.mode == told.mode else "", stand, added))
    return table_of(columns, rows, f"{told.cluster}: {told.mode or 'EVC is disabled'}")


def _findings_table(fit: clusters_pb2.EvcFit) -> ColumnTable:
    columns = (Column("AGAINST IT", free_text=True), Column("REMEDY", free_text=True))
    return table_of(columns, _findings(fit))


def _findings(fit: clusters_pb2.EvcFit) -> Sequence[tuple[str, str]]:
    from runtime.rpc.faults import fault_from_proto

    return [(str(fault_from_proto(finding.fault)), finding.remedy) for finding in fit.findings]


def _mode_details(told: clusters_pb2.GetEvcResponse) -> "Table":
    return details_of([("Cluster", told.cluster), ("EVC mode", told.mode or "disabled")])

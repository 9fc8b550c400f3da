"""`vpx host`: hosts join with a token, are added, shown, removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import host_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from vpxd.cli.command import command
from vpxd.cli.completion import host_names
from vpxd.cli.output import Column, ColumnTable, details_of, table_of
from vpxd.cli.quantities import bytes_text, seconds_text
from vpxd.cli.session import Session
from vpxd.cli.wording import enum_text, or_dash, time_text

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Hosts: join, add, list, show, remove.")

HostName = Annotated[
    str, typer.Argument(metavar="HOST", help="Name or id (host-3).", autocompletion=host_names)
]


@dataclass(frozen=True)
class MakeToken:
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the host that may join.")]
    valid_s: Annotated[
        int,
        typer.Option("--valid", min=1, max=7 * 86_400, metavar="SECONDS", help="How long it may be used."),
    ] = 3600


@command(app, "token", MakeToken)
async def make_token(session: Session, arguments: MakeToken) -> None:
    """Make a one-time token with which a host joins the cluster."""
    request = service_pb2.CreateJoinTokenRequest(host_name=arguments.name, valid_s=arguments.valid_s)
    async with session.connect() as client:
        answer = await client.call(client.stub.CreateJoinToken, request, session.call_timeout_s)
    session.show(answer, lambda made: _token_details(made, arguments))


def _token_details(made: service_pb2.CreateJoinTokenResponse, arguments: MakeToken) -> "Table":
    join = f"python -m vpxa join --vpxd {made.join_address} --token {made.token} --ca-fingerprint {made.ca_fingerprint}"
    return details_of(
        [
            ("Token", made.token),
            ("CA fingerprint", made.ca_fingerprint),
            ("Join address", made.join_address),
            ("Good for", f"{arguments.name}, once, within {seconds_text(arguments.valid_s)}"),
            ("On the host", join),
            ("Then here", f"vpx host add {arguments.name}"),
        ]
    )


@dataclass(frozen=True)
class AddHost:
    name: Annotated[str, typer.Argument(metavar="NAME", help="The host's name, as it joined.")]
    address: Annotated[
        str,
        typer.Option(
            "--address", metavar="ADDRESS:PORT", help="Of its vpxa. [default: as it said when it joined]"
        ),
    ] = ""
    cluster: Annotated[
        str, typer.Option("--cluster", help="Cluster to put it in. [default: the first one]")
    ] = ""


@command(app, "add", AddHost, task=True)
async def add_host(session: Session, arguments: AddHost) -> None:
    """Add a host that has joined (see: vpx host token)."""
    from vpxd.cli.task_progress import finish

    request = service_pb2.AddHostRequest(
        name=arguments.name, address=arguments.address, cluster=arguments.cluster
    )
    async with session.connect() as client:
        task = await client.call(client.stub.AddHost, request, session.call_timeout_s)
        await finish(session, client, task, f"Host {arguments.name} is added and connected.")


@dataclass(frozen=True)
class ListHosts:
    cluster: Annotated[str, typer.Option("--cluster", help="Only those of this cluster.")] = ""


@command(app, "list", ListHosts)
async def list_hosts(session: Session, arguments: ListHosts) -> None:
    """All hosts, with what they have and what is reserved."""
    request = service_pb2.ListHostsRequest(cluster=arguments.cluster)
    async with session.connect() as client:
        answer = await client.call(client.stub.ListHosts, request, session.call_timeout_s)
    nothing = "No hosts. `vpx host token NAME` makes a token with which one may join."
    session.show_list(answer.hosts, _hosts_table, nothing)


def _hosts_table(hosts: Sequence[inventory_pb2.Host]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("ID"),
        Column("STATE"),
        Column("VMS", "right"),
        Column("MEMORY RESERVED", "right"),
        Column("VCPUS", "right"),
        Column("CPU", "right"),
        Column("MANAGEMENT"),
        Column("VMOTION"),
        Column("QEMU"),
    )
    rows = [
        (
            host.name,
            host.id,
            _connection(host),
            str(host.vm_count),
            f"{bytes_text(host.usage.memory_reserved_bytes)} of {bytes_text(host.info.memory_bytes)}",
            f"{host.usage.vcpus_reserved} of {host.info.vcpu_capacity}",
            f"{host.usage.cpu_percent:.0f} %",
            host.address,
            or_dash(host.info.vmotion_address),
            f"{host.info.capability.qemu_version} {host.info.capability.accelerator}",
        )
        for host in hosts
    ]
    return table_of(columns, rows)


@dataclass(frozen=True)
class ShowHost:
    host: HostName


@command(app, "show", ShowHost)
async def show_host(session: Session, arguments: ShowHost) -> None:
    """One host in full."""
    from runtime.faults import ManagedObjectNotFound

    async with session.connect() as client:
        answer = await client.call(
            client.stub.ListHosts, service_pb2.ListHostsRequest(), session.call_timeout_s
        )
    for host in answer.hosts:
        if arguments.host in (host.id, host.name):
            session.show(host, _host_details)
            return
    raise ManagedObjectNotFound(f"There is no host {arguments.host}.", kind="host", key=arguments.host)


def _host_details(host: inventory_pb2.Host) -> "Table":
    info, usage, capability = host.info, host.usage, host.info.capability
    stores = [
        f"{store.name} ({bytes_text(store.free_bytes)} free of {bytes_text(store.capacity_bytes)}"
        f"{'' if store.accessible else ', not accessible'})"
        for store in info.datastores
    ]
    pairs = [
        ("Name", host.name),
        ("Id", host.id),
        ("UUID", info.uuid),
        ("State", _connection(host)),
        ("Last heartbeat", time_text(host.last_heartbeat)),
        ("Cluster", host.cluster),
        ("Management address", host.address),
        ("vMotion address", or_dash(info.vmotion_address)),
        ("VMs", str(host.vm_count)),
        (
            "Memory",
            f"{bytes_text(usage.memory_reserved_bytes)} reserved of {bytes_text(info.memory_bytes)}, "
            f"{bytes_text(usage.memory_used_bytes)} in use",
        ),
        ("vCPUs", f"{usage.vcpus_reserved} reserved of {info.vcpu_capacity} ({info.cpu_cores} cores)"),
        ("CPU", f"{usage.cpu_percent:.0f} % of one core"),
        ("Datastores", "; ".join(stores)),
        ("QEMU", f"{capability.qemu_version} ({capability.accelerator})"),
        ("Newest machine types", ", ".join(_newest(capability.machine_types))),
        ("vMotion stream", f"versions {capability.stream_version_min} to {capability.stream_version_max}"),
        ("Version", info.version),
    ]
    return details_of(pairs)


def _newest(machine_types: Sequence[str]) -> list[str]:
    def version(name: str) -> tuple[int, ...]:
        return tuple(
            int(part) for part in name.rpartition("-")[2].split(".") if part.isascii() and part.isdigit()
        )

    return sorted(machine_types, key=lambda name: (version(name), name), reverse=True)[:4]


def _connection(host: inventory_pb2.Host) -> str:
    return enum_text(host_pb2.HostConnectionState, host.connection_state)


@dataclass(frozen=True)
class RemoveHost:
    host: HostName
    force: Annotated[
        bool, typer.Option("--force", help="Even with powered-on VMs: they run on, unmanaged.")
    ] = False


@command(app, "remove", RemoveHost, task=True)
async def remove_host(session: Session, arguments: RemoveHost) -> None:
    """Forget a host and its powered-off VMs; nothing is stopped on it."""
    from vpxd.cli.task_progress import finish

    request = service_pb2.RemoveHostRequest(host=arguments.host, force=arguments.force)
    async with session.connect() as client:
        task = await client.call(client.stub.RemoveHost, request, session.call_timeout_s)
        await finish(session, client, task, f"Host {arguments.host} is removed.")

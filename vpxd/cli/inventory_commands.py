"""`vpx cluster`, `vpx network`, `vpx about`: the rest of the inventory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vpxd.v1 import inventory_pb2, service_pb2
from vpxd.cli.command import NoArguments, command
from vpxd.cli.output import Column, ColumnTable, details_of, table_of
from vpxd.cli.session import Session

if TYPE_CHECKING:
    from rich.table import Table

    from vpxd.cli.client import VpxdClient

clusters = typer.Typer(no_args_is_help=True, help="Clusters of hosts.")
networks = typer.Typer(no_args_is_help=True, help="Networks, and which hosts are on them.")


@command(clusters, "list", NoArguments)
async def list_clusters(session: Session, _arguments: NoArguments) -> None:
    """All clusters."""
    request = service_pb2.ListClustersRequest()
    async with session.connect() as client:
        answer = await client.call(client.stub.ListClusters, request, session.call_timeout_s)
    session.show_list(answer.clusters, _clusters_table, "No clusters.")


def _clusters_table(found: Sequence[inventory_pb2.Cluster]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("ID"),
        Column("DATACENTER"),
        Column("HOSTS", "right"),
    )
    return table_of(columns, [(one.name, one.id, one.datacenter, str(one.host_count)) for one in found])


@dataclass(frozen=True)
class CreateCluster:
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new cluster's name.")]
    datacenter: Annotated[str, typer.Option("--datacenter", help="Where. [default: the first one]")] = ""


@command(clusters, "create", CreateCluster)
async def create_cluster(session: Session, arguments: CreateCluster) -> None:
    """Make a new, empty cluster."""
    request = service_pb2.CreateClusterRequest(name=arguments.name, datacenter=arguments.datacenter)
    async with session.connect() as client:
        made = await client.call(client.stub.CreateCluster, request, session.call_timeout_s)
    session.show(made, lambda cluster: _clusters_table([cluster]))


@command(networks, "list", NoArguments)
async def list_networks(session: Session, _arguments: NoArguments) -> None:
    """All networks."""
    async with session.connect() as client:
        answer = await client.call(
            client.stub.ListNetworks, service_pb2.ListNetworksRequest(), session.call_timeout_s
        )
        names = {} if session.json else await _host_names(session, client)
    session.show_list(answer.networks, lambda found: _networks_table(found, names), "No networks.")


def _networks_table(found: Sequence[inventory_pb2.Network], names: dict[str, str]) -> ColumnTable:
    columns = (Column("NAME"), Column("ID"), Column("HOSTS", free_text=True))
    rows = [
        (one.name, one.id, ", ".join(sorted(names.get(host, host) for host in one.hosts))) for one in found
    ]
    return table_of(columns, rows)


def register_about(app: typer.Typer) -> None:
    """Adds `vpx about` to the top level."""

    @command(app, "about", NoArguments)
    async def about(session: Session, _arguments: NoArguments) -> None:
        """Version and identity of the cluster."""
        async with session.connect() as client:
            answer = await client.call(
                client.stub.GetAbout, service_pb2.GetAboutRequest(), session.call_timeout_s
            )
            server = client.config.server
        session.show(answer, lambda told: _about_details(told, server))


def _about_details(told: service_pb2.GetAboutResponse, server: str) -> "Table":
    return details_of(
        [
            ("Product", f"{told.product} {told.version}"),
            ("vpxd", server),
            ("Cluster UUID", told.cluster_uuid),
            ("CA fingerprint", told.ca_fingerprint),
        ]
    )


async def _host_names(session: Session, client: "VpxdClient") -> dict[str, str]:
    """Names by id: people know hosts by their names."""
    answer = await client.call(client.stub.ListHosts, service_pb2.ListHostsRequest(), session.call_timeout_s)
    return {host.id: host.name for host in answer.hosts}

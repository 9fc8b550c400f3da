"""`vpx cluster rule`: affinity rules between VMs, and between VMs and hosts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vpxd.v1 import clusters_pb2 as api
from proto.vpxd.v1 import service_pb2
from vpxd.cli.command import command
from vpxd.cli.completion import host_names, vm_names
from vpxd.cli.inventory_commands import clusters
from vpxd.cli.output import Column, ColumnTable, table_of
from vpxd.cli.session import Session
from vpxd.cli.wording import or_dash

if TYPE_CHECKING:
    from vpxd.cli.client import VpxdClient

app = typer.Typer(no_args_is_help=True, help="Rules: which VMs run together, apart, or on which hosts.")
clusters.add_typer(app, name="rule")


class RuleWord(StrEnum):
    """What is typed for a kind of rule."""

    TOGETHER = "together"
    APART = "apart"
    ON = "on"
    NOT_ON = "not-on"


KIND_OF: Mapping[str, api.RuleKind.ValueType] = MappingProxyType(
    {
        RuleWord.TOGETHER: api.RULE_KIND_VM_AFFINITY,
        RuleWord.APART: api.RULE_KIND_VM_ANTI_AFFINITY,
        RuleWord.ON: api.RULE_KIND_VM_HOST_AFFINITY,
        RuleWord.NOT_ON: api.RULE_KIND_VM_HOST_ANTI_AFFINITY,
    }
)
KIND_TEXT: Mapping[int, str] = MappingProxyType({number: str(word) for word, number in KIND_OF.items()})

RuleName = Annotated[str, typer.Argument(metavar="RULE", help="Its name in the cluster.")]
ClusterOption = Annotated[
    str, typer.Option("--cluster", help="Cluster, by name or id. [default: the first one]")
]


@dataclass(frozen=True)
class SetRule:
    name: RuleName
    kind: Annotated[
        RuleWord,
        typer.Argument(
            metavar="KIND",
            help="together: on one host; apart: on different hosts; on, not-on: with --host.",
            show_default=False,
        ),
    ]
    vm: Annotated[
        list[str], typer.Option("--vm", metavar="VM", help="Can be repeated.", autocompletion=vm_names)
    ]
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="Can be repeated.", autocompletion=host_names),
    ] = None
    mandatory: Annotated[
        bool, typer.Option("--mandatory", help="A violation is refused, not only warned of.")
    ] = False
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep it, but don't look at it.")] = False
    cluster: ClusterOption = ""


@command(app, "set", SetRule)
async def set_rule(session: Session, arguments: SetRule) -> None:
    """Make a rule, or replace the one of this name. Nothing is moved: placement and migrations follow it."""
    request = api.Rule(
        cluster=arguments.cluster,
        name=arguments.name,
        kind=KIND_OF[arguments.kind],
        vms=arguments.vm,
        hosts=arguments.host or [],
        mandatory=arguments.mandatory,
        disabled=arguments.disabled,
    )
    async with session.connect() as client:
        made = await client.call(client.clusters.SetRule, request, session.call_timeout_s)
        names = {} if session.json else await _names(session, client)
    session.show(made, lambda rule: _rules_table([rule], names))


@dataclass(frozen=True)
class ListRules:
    cluster: ClusterOption = ""


@command(app, "list", ListRules)
async def list_rules(session: Session, arguments: ListRules) -> None:
    """The rules of a cluster, and whether each holds now."""
    request = api.ListRulesRequest(cluster=arguments.cluster)
    async with session.connect() as client:
        answer = await client.call(client.clusters.ListRules, request, session.call_timeout_s)
        names = {} if session.json else await _names(session, client)
    session.show_list(answer.rules, lambda rules: _rules_table(rules, names), "No rules.")


@dataclass(frozen=True)
class DeleteRule:
    name: RuleName
    cluster: ClusterOption = ""


@command(app, "delete", DeleteRule)
async def delete_rule(session: Session, arguments: DeleteRule) -> None:
    """Forget a rule."""
    request = api.RuleRequest(cluster=arguments.cluster, name=arguments.name)
    async with session.connect() as client:
        await client.call(client.clusters.DeleteRule, request, session.call_timeout_s)
    session.say(f"The rule {arguments.name} was deleted.")


def _rules_table(rules: Sequence[api.Rule], names: Mapping[str, str]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("KIND"),
        Column("VMS", free_text=True),
        Column("HOSTS", free_text=True),
        Column("MANDATORY"),
        Column("STATE"),
    )
    rows = [
        (
            rule.name,
            KIND_TEXT.get(rule.kind, str(rule.kind)),
            or_dash(", ".join(names.get(vm, vm) for vm in rule.vms)),
            or_dash(", ".join(names.get(host, host) for host in rule.hosts)),
            "yes" if rule.mandatory else "no",
            "disabled" if rule.disabled else "violated" if rule.violated else "holds",
        )
        for rule in rules
    ]
    return table_of(columns, rows)


async def _names(session: Session, client: "VpxdClient") -> dict[str, str]:
    """Names by id: people know VMs and hosts by their names."""
    vms = await client.call(client.stub.ListVms, service_pb2.ListVmsRequest(), session.call_timeout_s)
    hosts = await client.call(client.stub.ListHosts, service_pb2.ListHostsRequest(), session.call_timeout_s)
    return {vm.id: vm.name for vm in vms.vms} | {host.id: host.name for host in hosts.hosts}

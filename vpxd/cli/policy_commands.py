"""`vpx policy`: storage policies; and `vpx vm policies`, which VM has which."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import storage_pb2 as api
from vpxd.cli.command import NoArguments, command
from vpxd.cli.completion import policy_names
from vpxd.cli.disk_format import NUMBER_OF, DiskFormatWord, format_text
from vpxd.cli.errors import UsageError
from vpxd.cli.output import Column, ColumnTable, details_of, json_of, print_json, print_view, table_of
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import VmName
from vpxd.cli.vm_commands import app as vm_app
from vpxd.cli.wording import or_dash

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Storage policies: what the datastore of a VM must be.")

PolicyName = Annotated[str, typer.Argument(metavar="POLICY", help="Its name.", autocompletion=policy_names)]


@dataclass(frozen=True)
class SetPolicy:
    name: PolicyName
    description: Annotated[str, typer.Option("--description", help="For people.")] = ""
    require_tag: Annotated[
        list[str] | None, typer.Option("--require-tag", metavar="TAG", help="Can be repeated.")
    ] = None
    forbid_tag: Annotated[
        list[str] | None, typer.Option("--forbid-tag", metavar="TAG", help="Can be repeated.")
    ] = None
    shared: Annotated[bool, typer.Option("--shared", help="Seen by more than one host of the cluster.")] = (
        False
    )
    format: Annotated[
        list[DiskFormatWord] | None,
        typer.Option("--format", help="Disks may have it; can be repeated. [default: any]"),
    ] = None
    min_free_percent: Annotated[
        float,
        typer.Option("--min-free-percent", min=0, max=99.9, help="Of the datastore, with the VM on it."),
    ] = 0.0


@command(app, "set", SetPolicy)
async def set_policy(session: Session, arguments: SetPolicy) -> None:
    """Make a policy, or replace the one of this name. All that is said must hold."""
    request = api.StoragePolicy(
        name=arguments.name,
        description=arguments.description,
        required_tags=arguments.require_tag or [],
        forbidden_tags=arguments.forbid_tag or [],
        shared=arguments.shared,
        formats=[NUMBER_OF[word] for word in arguments.format or []],
        min_free_percent=arguments.min_free_percent,
    )
    async with session.connect() as client:
        made = await client.call(client.storage.SetPolicy, request, session.call_timeout_s)
    session.show(made, lambda policy: _policies_table([policy]))


@command(app, "list", NoArguments)
async def list_policies(session: Session, _arguments: NoArguments) -> None:
    """All policies."""
    async with session.connect() as client:
        answer = await client.call(
            client.storage.ListPolicies, api.ListPoliciesRequest(), session.call_timeout_s
        )
    session.show_list(answer.policies, _policies_table, "No policies.")


def _policies_table(found: Sequence[api.StoragePolicy]) -> ColumnTable:
    columns = (
        Column("NAME"),
        Column("REQUIRED TAGS"),
        Column("FORBIDDEN TAGS"),
        Column("SHARED"),
        Column("FORMATS"),
        Column("MIN FREE", "right"),
        Column("DESCRIPTION", free_text=True),
    )
    rows = [
        (
            one.name,
            or_dash(", ".join(one.required_tags)),
            or_dash(", ".join(one.forbidden_tags)),
            "yes" if one.shared else "-",
            ", ".join(format_text(number) for number in one.formats) or "any",
            f"{one.min_free_percent:g} %" if one.min_free_percent else "-",
            or_dash(one.description),
        )
        for one in found
    ]
    return table_of(columns, rows)


@dataclass(frozen=True)
class OnePolicy:
    policy: PolicyName


@command(app, "check", OnePolicy)
async def check_policy(session: Session, arguments: OnePolicy) -> None:
    """Every datastore, and what speaks against it under this policy."""
    request = api.PolicyRequest(policy=arguments.policy)
    async with session.connect() as client:
        answer = await client.call(client.storage.CheckPolicy, request, session.call_timeout_s)
    session.show_list(answer.datastores, _fits_table, "No datastores.")


def _fits_table(found: Sequence[api.PolicyFit]) -> ColumnTable:
    columns = (
        Column("DATASTORE"),
        Column("ID"),
        Column("COMPATIBLE"),
        Column("REASON", free_text=True),
        Column("REMEDY", free_text=True),
    )
    rows: list[tuple[str, ...]] = []
    for fit in found:
        first = (fit.datastore_name, fit.datastore, "no" if fit.findings else "yes")
        rows.append((*first, *_reason(fit.findings[0] if fit.findings else None)))
        rows.extend(("", "", "", *_reason(finding)) for finding in fit.findings[1:])
    return table_of(columns, rows)


def _reason(finding: task_pb2.Finding | None) -> tuple[str, str]:
    return ("-", "-") if finding is None else (finding.fault.message, or_dash(finding.remedy))


@command(app, "delete", OnePolicy)
async def delete_policy(session: Session, arguments: OnePolicy) -> None:
    """Forget a policy that no VM has."""
    request = api.PolicyRequest(policy=arguments.policy)
    async with session.connect() as client:
        answer = await client.call(client.storage.DeletePolicy, request, session.call_timeout_s)
    if session.json:
        print_json(json_of(answer))
    session.say(f"{arguments.policy} is deleted.")


@dataclass(frozen=True)
class PoliciesOfVm:
    vm: VmName
    home: Annotated[
        str | None,
        typer.Option(
            "--home", metavar="POLICY", help="Give its home this policy.", autocompletion=policy_names
        ),
    ] = None
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk", metavar="KEY=POLICY", help="Give a disk this one (2000=gold); can be repeated."
        ),
    ] = None
    clear: Annotated[bool, typer.Option("--clear", help="Take those away that aren't named here.")] = False


@command(vm_app, "policies", PoliciesOfVm)
async def vm_policies(session: Session, arguments: PoliciesOfVm) -> None:
    """A VM's storage policies and whether it complies; with options, change them. Nothing is moved."""
    disks = parse_disk_policies(arguments.disk or ())
    async with session.connect() as client:
        now = await client.call(
            client.storage.GetVmPolicies, api.GetVmPoliciesRequest(vm=arguments.vm), session.call_timeout_s
        )
        if arguments.home is not None or disks or arguments.clear:
            kept = api.VmPolicies() if arguments.clear else now
            request = api.SetVmPoliciesRequest(
                vm=now.vm,
                home_policy=kept.home_policy if arguments.home is None else arguments.home,
                disk_policies={**kept.disk_policies, **disks},
            )
            now = await client.call(client.storage.SetVmPolicies, request, session.call_timeout_s)
    if session.json:
        print_json(json_of(now))
        return
    print_view(session.stdout, _vm_policies_details(now))
    for finding in now.findings:
        session.say(f"  {finding.fault.message}; {finding.remedy}")


def parse_disk_policies(texts: Iterable[str]) -> dict[int, str]:
    """Policies by the disk's key; an empty one takes it away. :raises UsageError: a text isn't KEY=POLICY."""
    disks: dict[int, str] = {}
    for text in texts:
        key, equals, policy = text.partition("=")
        if not equals or not key.isascii() or not key.isdigit() or len(key) > 9:
            raise UsageError(f"--disk: {text!r} is not KEY=POLICY, such as 2000=gold.")
        disks[int(key)] = policy
    return disks


def _vm_policies_details(found: api.VmPolicies) -> "Table":
    pairs = [("VM", found.vm), ("Home", or_dash(found.home_policy))]
    pairs.extend((f"Disk {key}", found.disk_policies[key]) for key in sorted(found.disk_policies))
    return details_of([*pairs, ("Complies", "no" if found.findings else "yes")])

"""The panel "Compatibility": what vpxd says to what is chosen so far."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proto.vpxd.v1 import service_pb2
from vpxd.cli.output import Column, ColumnTable, print_view, table_of
from vpxd.cli.vm_check import findings_view
from vpxd.cli.wizard.choices import Choices, Step
from vpxd.cli.wizard.world import World

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SUCCEEDED = "Compatibility checks succeeded."


async def show_compatibility(console: "Console", world: World, choices: Choices, step: Step) -> bool:
    """Asks vpxd, shows the panel; answers whether an error stands against every host that comes into question.

    What a later step can still mend isn't shown at this one. Where a cluster is chosen the recommended hosts are shown.

    :raises VimFault: vpxd refuses the question itself.
    """
    request = choices.request(step)
    hosts = [_without(host, choices.later_groups(step)) for host in await world.check(request)]
    if choices.moves_compute and choices.cluster:
        recommended = await world.recommend(request)
        print_view(console, _recommended(recommended, choices.later_groups(step)))
    show_findings(console, hosts)
    return blocked(hosts)


def show_findings(console: "Console", hosts: Sequence[service_pb2.HostFindings]) -> None:
    """The panel alone: framed on a terminal, plain lines elsewhere."""
    from rich.panel import Panel
    from rich.text import Text

    content: RenderableType
    if not hosts:
        content = Text("No host comes into question.")
    elif not any(host.findings for host in hosts):
        content = Text(SUCCEEDED)
    else:
        content = findings_view(hosts)
    if console.is_terminal:
        style = "red" if blocked(hosts) else "green"
        content = Panel(content, title="Compatibility", title_align="left", border_style=style)
    print_view(console, content)


def blocked(hosts: Sequence[service_pb2.HostFindings]) -> bool:
    """Whether an error stands against each of them; so it does where there is none."""
    return all(any(finding.error for finding in host.findings) for host in hosts)


def _without(host: service_pb2.HostFindings, groups: frozenset[int]) -> service_pb2.HostFindings:
    kept = [finding for finding in host.findings if finding.group not in groups]
    return service_pb2.HostFindings(host=host.host, host_name=host.host_name, findings=kept)


def _recommended(hosts: Sequence[service_pb2.Recommendation], later: frozenset[int]) -> ColumnTable:
    """Best first, with the reasons. What only a later step's choice can mend is said to be open, not forbidden."""
    columns = (Column("RECOMMENDED"), Column("SCORE", "right"), Column("REASONS", free_text=True))
    rows: list[tuple[str, str, str]] = []
    for host in hosts:
        errors = [finding for finding in host.findings if finding.error]
        is_open = bool(errors) and all(finding.group in later for finding in errors)
        first, *others = (
            ["open: networks or storage aren't chosen yet"] if is_open else list(host.reasons) or ["-"]
        )
        rows.append((host.host_name, f"{host.score:.2f}" if host.score else "-", first))
        rows.extend(("", "", reason) for reason in others)
    return table_of(columns, rows)

"""The panel "Compatibility": what vpxd says to what is chosen so far."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.console_text import plain
from vpxd.cli.output import print_view
from vpxd.cli.vm_check import findings_view
from vpxd.cli.wizard.choices import Choices, Step
from vpxd.cli.wizard.world import World

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_Later = Callable[[task_pb2.Finding], bool]
SUCCEEDED = "Compatibility checks succeeded."


async def show_compatibility(console: "Console", world: World, choices: Choices, step: Step) -> bool:
    """Asks vpxd, shows the panel; answers whether an error stands against every host that comes into question.

    What a later step can still mend isn't shown at this one. Where a cluster is chosen the recommended hosts are shown.

    :raises VimFault: vpxd refuses the question itself.
    """
    request = choices.request(step)
    settled_later = partial(choices.settled_later, step)
    hosts = [_without(host, settled_later) for host in await world.check(request)]
    if choices.moves_compute and choices.cluster:
        print_view(console, _recommended(await world.recommend(request), settled_later))
    show_findings(console, hosts)
    # A cluster of the VM's own host alone comes into question as soon as other storage is chosen.
    undecided = not hosts and step < Step.STORAGE and choices.applies(Step.STORAGE)
    return blocked(hosts) and not undecided


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


def _without(host: service_pb2.HostFindings, settled_later: _Later) -> service_pb2.HostFindings:
    kept = [finding for finding in host.findings if not settled_later(finding)]
    return service_pb2.HostFindings(host=host.host, host_name=host.host_name, findings=kept)


def _recommended(hosts: Sequence[service_pb2.Recommendation], settled_later: _Later) -> "Table":
    """Best first, with the reasons. What only a later step's choice can mend is said to be open, not forbidden."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("RECOMMENDED", no_wrap=True)
    table.add_column("SCORE", no_wrap=True, justify="right")
    table.add_column("REASONS", overflow="fold")
    for host in hosts:
        errors = [finding for finding in host.findings if finding.error]
        is_open = bool(errors) and all(settled_later(finding) for finding in errors)
        reasons = ["open: networks or storage aren't chosen yet"] if is_open else host.reasons
        score = f"{host.score:.2f}" if host.score else "-"
        table.add_row(plain(host.host_name), score, "\n".join(plain(reason) for reason in reasons) or "-")
    return table

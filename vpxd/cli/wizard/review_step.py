"""The last step: all that is chosen, the final panel, and Finish, Back, Cancel, or the specification as a file."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from proto.vim.v1 import host_pb2
from vpxd.cli.disk_format import format_text
from vpxd.cli.errors import Interrupted
from vpxd.cli.output import details_of, print_view
from vpxd.cli.quantities import rate_text
from vpxd.cli.relocate_spec import text_of
from vpxd.cli.wizard.choices import Choices, FilesChoice, Step, port_groups_of
from vpxd.cli.wizard.dialog import NOTHING_STARTED, Option, StepBack
from vpxd.cli.wizard.panel import show_compatibility
from vpxd.cli.wizard.steps import ENCRYPTION_MODES, PRIORITIES, VERIFY_MODES, Tour, name_of
from vpxd.cli.wizard.storage_step import files_text
from vpxd.cli.wording import enum_text, or_dash

if TYPE_CHECKING:
    from rich.table import Table

_FINISH, _BACK, _CANCEL, _PRINT = "finish", "back", "cancel", "print"


async def review(tour: Tour) -> None:
    """Returns when "Finish" is chosen and no error stands against it.

    :raises StepBack: :raises Interrupted: as they are chosen.  :raises VimFault: vpxd refuses to check.
    """
    print_view(tour.console, _summary(tour.choices))
    tour.dialog.tell()
    blocked = await show_compatibility(tour.console, tour.world, tour.choices, Step.REVIEW)
    options = [
        Option(_FINISH, ("Finish", "an error stands against it" if blocked else "start the migration")),
        Option(_BACK, ("Back", "to the step before")),
        Option(_CANCEL, ("Cancel", "nothing is started")),
        Option(_PRINT, ("Print spec", "the specification for `vpx vm migrate --spec`")),
    ]
    while True:
        chosen = await tour.dialog.choose("Finish?", ("ANSWER", ""), options, None if blocked else _FINISH)
        if chosen == _BACK:
            raise StepBack
        if chosen == _CANCEL:
            raise Interrupted(NOTHING_STARTED)
        if chosen == _PRINT:
            await _print_spec(tour)
        elif blocked:
            tour.dialog.tell("An error stands against it: go back and choose something else, or cancel.")
        else:
            return


async def _print_spec(tour: Tour) -> None:
    text = text_of(tour.choices.request())
    typed = await tour.dialog.line("New file for it (Enter: show it here)")
    if not typed:
        tour.console.out(text, end="", highlight=False)
        return
    try:
        await asyncio.to_thread(_write_new, typed, text)
    except (OSError, RuntimeError) as error:  # RuntimeError: "~name" of nobody
        tour.dialog.tell(f"It can't be written to {typed}: {getattr(error, 'strerror', None) or error}.")
    else:
        tour.dialog.tell(f"Written: `vpx vm migrate {tour.choices.vm.name} --spec {typed}` takes it.")


def _write_new(name: str, text: str) -> None:
    """:raises OSError: FileExistsError where there is one: nothing is overwritten."""
    with Path(name).expanduser().open("x", encoding="utf-8") as file:
        file.write(text)


def _summary(choices: Choices) -> "Table":
    power = enum_text(host_pb2.PowerState, choices.vm.power_state)
    rows = [
        (
            "Virtual machine",
            f"{choices.vm.name} ({choices.vm.id}), {power} on {or_dash(choices.vm.host_name)}",
        ),
        ("Migration type", choices.type.value),
    ]
    if choices.moves_compute and choices.cluster:
        rows.append(("Cluster", f"{choices.cluster}, whose placement chooses the host"))
    elif choices.moves_compute:
        rows.append(("Host", choices.host))
    if choices.moves_storage:
        rows.extend(_storage_rows(choices))
    if choices.applies(Step.NETWORKS):
        rows.extend(_network_rows(choices))
    if choices.applies(Step.PRIORITY):
        rows.extend(_option_rows(choices))
    return details_of(rows)


def _storage_rows(choices: Choices) -> list[tuple[str, str]]:
    if not choices.per_disk:
        return [("Storage", files_text(choices.files, has_format=bool(choices.vm.config.disks)))]
    rows = [("Home", files_text(choices.files, has_format=False))]
    for disk in choices.vm.config.disks:
        chosen = files_text(choices.disks.get(disk.key, FilesChoice()))
        rows.append((f"Disk {disk.key}", f"{disk.path} ({format_text(disk.format)}): {chosen}"))
    return rows


def _network_rows(choices: Choices) -> list[tuple[str, str]]:
    if choices.per_nic:
        return [
            (f"NIC {nic.key}", f"{or_dash(nic.network)} → {choices.nics.get(nic.key, nic.network)}")
            for nic in choices.vm.config.nics
        ]
    return [
        ("Network", f"{group} → {choices.networks.get(group, group)}") for group in port_groups_of(choices.vm)
    ]


def _option_rows(choices: Choices) -> list[tuple[str, str]]:
    options = choices.options
    rows = [
        ("Priority", name_of(PRIORITIES, options.priority)),
        ("Verification", name_of(VERIFY_MODES, options.verify)),
        ("Encryption", name_of(ENCRYPTION_MODES, options.encryption)),
    ]
    # These come from flags: the wizard doesn't ask for them.
    if options.bandwidth_bytes_per_s:
        rows.append(("Bandwidth", f"at most {rate_text(options.bandwidth_bytes_per_s)}"))
    for title, value in (
        ("Streams", options.streams),
        ("Switchover goal, ms", options.switchover_goal_ms),
        ("Passes of pre-copy", options.max_iterations),
        ("Tracer", options.tracer),
    ):
        if value:
            rows.append((title, str(value)))
    return rows

"""The command tree of `vpx`."""

from typing import Annotated

import typer

from vpxd.cli import (
    datastore_commands,
    disk_commands,
    evc_commands,
    host_commands,
    inventory_commands,
    policy_commands,
    rule_commands,
    task_commands,
    vm_check,
    vm_commands,
    vm_console,
    vm_migrate,
    vm_power,
)
from vpxd.cli.command import Config, NoWait, Output, Timeout
from vpxd.cli.exit_status import MEANING
from vpxd.cli.session import GlobalOptions

_EPILOG = (
    "Exit status: " + "; ".join(f"{status.value} {meaning}" for status, meaning in MEANING.items()) + "."
)

app = typer.Typer(
    name="vpx",
    help="Manages a cluster of hosts and moves their running virtual machines: the client of vpxd.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# These modules put their commands into vm_commands.app and inventory_commands.clusters when they are imported.
VM_COMMAND_MODULES = (vm_power, vm_console, vm_check, vm_migrate, evc_commands, rule_commands)

app.add_typer(host_commands.app, name="host")
app.add_typer(vm_commands.app, name="vm")
app.add_typer(task_commands.app, name="task")
task_commands.register_events(app)
app.add_typer(inventory_commands.clusters, name="cluster")
app.add_typer(datastore_commands.app, name="datastore")
app.add_typer(disk_commands.app, name="disk")
app.add_typer(policy_commands.app, name="policy")
app.add_typer(inventory_commands.networks, name="network")
inventory_commands.register_about(app)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"vpx {version('vpx')}")
        except PackageNotFoundError:
            typer.echo("vpx (not installed)")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    config: Config = None,
    output: Output = None,
    timeout: Timeout = None,
    no_wait: NoWait = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = GlobalOptions(config, output, timeout, no_wait)

"""How a command is declared, and the edge at which its errors become messages and exit statuses.

    @dataclass(frozen=True)
    class ShowVm:
        name: Annotated[str, typer.Argument(help="...", autocompletion=vm_names)]

    @command(app, "show", ShowVm)
    async def show_vm(session: Session, arguments: ShowVm) -> None:
        "One VM in full."

The dataclass is the command's parameters; the global options are added here, so that `-o json` and the others are
taken after the subcommand as well as before it.
"""

import asyncio
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from runtime.faults import VimFault
from vpxd.cli.errors import CliError
from vpxd.cli.exit_status import ExitStatus
from vpxd.cli.fault_text import say, status_of
from vpxd.cli.output import OutputFormat
from vpxd.cli.session import GlobalOptions, Session

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    A = TypeVar("A", bound=DataclassInstance)
else:
    A = TypeVar("A")

Body = Callable[[Session, A], Coroutine[Any, Any, None]]
TRACEBACK_VARIABLE = "VPX_TRACEBACK"
_PANEL = "Global options"

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="client.json to use (also $VPX_CONFIG).", rich_help_panel=_PANEL
    ),
]
Output = Annotated[
    OutputFormat | None,
    typer.Option("--output", "-o", help="How to print results. [default: table]", rich_help_panel=_PANEL),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0.001,
        metavar="SECONDS",
        help="Give up waiting after this time (exit status 7); a started task goes on.",
        rich_help_panel=_PANEL,
    ),
]
NoWait = Annotated[
    bool,
    typer.Option(
        "--no-wait",
        help="Start the task and return at once instead of waiting for its end.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class NoArguments:
    """Of a command that has only the global options."""


@dataclass(frozen=True)
class _Global:
    """The global options as parameters of each command."""

    global_config: Config = None
    global_output: Output = None
    global_timeout: Timeout = None


@dataclass(frozen=True)
class _GlobalOfTask(_Global):
    """Those of a command that starts a task."""

    global_no_wait: NoWait = False


def command(
    app: typer.Typer, name: str, arguments: type[A], *, task: bool = False
) -> Callable[[Body[A]], Body[A]]:
    """Registers the decorated coroutine function as a command; `task`: it starts one, so it takes --no-wait."""
    shared = _GlobalOfTask if task else _Global

    def register(body: Body[A]) -> Body[A]:
        # The one place with **kwargs: typer passes parameters by name, those of the signature made below.
        def run(context: typer.Context, **values: Any) -> None:
            own = {field.name: values[field.name] for field in fields(arguments)}
            outer = context.find_object(GlobalOptions) or GlobalOptions()
            options = _options(values).over(outer)
            status = run_body(Session(options), body, arguments(**own))
            if status is not ExitStatus.OK:
                raise typer.Exit(int(status))

        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [context, *_parameters(arguments), *_parameters(shared)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = body.__doc__
        app.command(name)(run)
        return body

    return register


def run_body(session: Session, body: Body[A], arguments: A) -> ExitStatus:
    """Runs a command to its end; every error is said on standard error and answered as an exit status."""
    try:
        asyncio.run(body(session, arguments))
    except (VimFault, CliError) as error:
        return _told(session, error)
    except BaseExceptionGroup as group:
        told, rest = group.split((VimFault, CliError))
        if told is not None and rest is None:
            return _told(session, _first(told))
        return _defect(session, group)
    except KeyboardInterrupt:
        session.complain(say(session.interruption))
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:  # `vpx ... | head`: nobody reads any more; the interpreter must not flush into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.OK
    except Exception as error:  # noqa: BLE001 - the process's outer edge: a user never sees a traceback
        return _defect(session, error)
    return ExitStatus.OK


def _told(session: Session, error: VimFault | CliError) -> ExitStatus:
    session.complain(say(error))
    return status_of(error)


def _defect(session: Session, error: BaseException) -> ExitStatus:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    reason = f"A defect of vpx itself: {type(error).__name__}: {error}"
    session.complain(say(CliError(reason, f"{TRACEBACK_VARIABLE}=1 shows where.")))
    return ExitStatus.FAILED


def _first(group: BaseExceptionGroup[Any]) -> VimFault | CliError:
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, VimFault | CliError)
    return error


def _parameters(arguments: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(arguments, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(arguments)
    ]


def _options(values: dict[str, Any]) -> GlobalOptions:
    return GlobalOptions(
        config=values["global_config"],
        output=values["global_output"],
        timeout_s=values["global_timeout"],
        no_wait=values.get("global_no_wait", False),
    )

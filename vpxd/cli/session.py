"""One invocation of `vpx`: its global options, its connection to vpxd, and where its output goes.

Results go to standard output; progress, notes and errors to standard error, so that a pipe gets results only.
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from runtime.rpc.operation_id import new_operation_id, use_operation_id
from vpxd.cli.config import config_from_environment
from vpxd.cli.console_text import plain
from vpxd.cli.errors import Interrupted
from vpxd.cli.output import OutputFormat, console, json_of, print_json, print_view

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vpxd.cli.client import VpxdClient

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class GlobalOptions:
    """Options that every command takes; None: not given there."""

    config: Path | None = None
    output: OutputFormat | None = None
    timeout_s: float | None = None
    no_wait: bool = False

    def over(self, outer: "GlobalOptions") -> "GlobalOptions":
        """These, and where they weren't given those before the subcommand."""
        return GlobalOptions(
            config=self.config or outer.config,
            output=self.output or outer.output,
            timeout_s=self.timeout_s if self.timeout_s is not None else outer.timeout_s,
            no_wait=self.no_wait or outer.no_wait,
        )


class Session:
    """What a command's body works with."""

    def __init__(self, options: GlobalOptions) -> None:
        self.options = options
        self.interruption = Interrupted("Interrupted.")  # what Ctrl-C means now
        self._stdout: Console | None = None
        self._stderr: Console | None = None

    @property
    def json(self) -> bool:
        """Whether results are JSON."""
        return self.options.output is OutputFormat.JSON

    @property
    def wait(self) -> bool:
        """Whether to wait for the tasks that are started."""
        return not self.options.no_wait

    @property
    def interactive(self) -> bool:
        """Whether progress can be drawn: on a terminal, and not beside JSON on the same one."""
        return sys.stderr.isatty() and not self.json

    @property
    def stdout(self) -> "Console":
        if self._stdout is None:
            self._stdout = console()
        return self._stdout

    @property
    def stderr(self) -> "Console":
        if self._stderr is None:
            self._stderr = console(stderr=True)
        return self._stderr

    @asynccontextmanager
    async def connect(self) -> "AsyncIterator[VpxdClient]":
        """The client of the configured vpxd, under one operation id for all that this command does.

        :raises NoConfiguration: there is none, or it can't be used.
        """
        from vpxd.cli.client import connect

        config = config_from_environment(self.options.config)
        use_operation_id(f"vpx-{new_operation_id()}")
        async with connect(config) as client:
            yield client

    @property
    def call_timeout_s(self) -> float:
        """The deadline of one rpc: --timeout where it is shorter than the usual one."""
        from vpxd.cli.client import CALL_TIMEOUT_S

        return min(self.options.timeout_s or CALL_TIMEOUT_S, CALL_TIMEOUT_S)

    def show(self, message: M, view: "Callable[[M], RenderableType]") -> None:
        """One object."""
        if self.json:
            print_json(json_of(message))
        else:
            print_view(self.stdout, view(message))

    def show_list(
        self, messages: Sequence[M], view: "Callable[[Sequence[M]], RenderableType]", nothing: str
    ) -> None:
        """A list; `nothing` is said (to standard error) where it is empty."""
        if self.json:
            print_json([json_of(message) for message in messages])
        elif messages:
            print_view(self.stdout, view(messages))
        else:
            self.note(nothing)

    def say(self, text: str) -> None:
        """A result for people; nothing with -o json."""
        if not self.json:
            self.stdout.print(plain(text))

    def note(self, text: str) -> None:
        """Beside the result, on standard error."""
        self.stderr.print(plain(text))

    def complain(self, lines: Iterable[str]) -> None:
        """An error, on standard error."""
        for line in lines:
            self.stderr.print(line, style="red" if line.startswith("error:") else None)

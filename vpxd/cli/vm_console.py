"""`vpx vm console`: what the guest wrote to a serial port."""

import base64
import sys
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import typer

from proto.vpxd.v1 import service_pb2
from vpxd.cli.command import command
from vpxd.cli.console_text import ConsoleCleaner
from vpxd.cli.errors import Interrupted, NoAnswer
from vpxd.cli.output import print_json
from vpxd.cli.session import Session
from vpxd.cli.vm_commands import VmName, app, size_of


@dataclass(frozen=True)
class ReadConsole:
    vm: VmName
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = (
        False
    )
    tail: Annotated[
        str, typer.Option("--tail", metavar="SIZE", help="Begin so far before the end. [default: all]")
    ] = ""
    port: Annotated[str, typer.Option("--port", metavar="PORT", help="console or heartbeat.")] = "console"


@command(app, "console", ReadConsole)
async def read_console(session: Session, arguments: ReadConsole) -> None:
    """Print what the guest wrote to a serial port.

    On a terminal escape sequences are left out; into a pipe or file the bytes go as they are. With -o json each piece
    is one document a line, the bytes in base64.
    """
    request = service_pb2.ReadConsoleRequest(
        vm=arguments.vm,
        follow=arguments.follow,
        tail_bytes=size_of(arguments.tail, "--tail") if arguments.tail else 0,
        port=arguments.port,
    )
    session.interruption = Interrupted("Stopped following the console; the VM runs on.")
    cleaner = ConsoleCleaner() if sys.stdout.isatty() else None
    async with session.connect() as client:
        timeout_s = session.options.timeout_s if arguments.follow else session.call_timeout_s
        answers = client.stream(
            client.stub.ReadConsole, request, *(() if timeout_s is None else (timeout_s,))
        )
        try:
            async with aclosing(answers):
                async for piece in answers:
                    _print(session, piece.data, cleaner)
        except NoAnswer:
            if not arguments.follow:
                raise
    if cleaner is not None:
        sys.stdout.write(cleaner.rest())
    sys.stdout.flush()


def _print(session: Session, data: bytes, cleaner: ConsoleCleaner | None) -> None:
    if session.json:
        print_json({"data": base64.b64encode(data).decode("ascii")}, one_line=True)
        return
    if cleaner is not None:
        sys.stdout.write(cleaner.clean(data))
    else:
        sys.stdout.buffer.write(data)
    sys.stdout.flush()

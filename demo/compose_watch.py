"""Programs of demo that watch something inside a container while a block runs."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from demo.compose_probe import as_argument
from demo.compose_project import CommandFailed, ComposeProject
from demo.heartbeat_observer import Beat

Take = Callable[[str], None]

_READY_S = 20.0
_END_S = 10.0
_MAX_LINE_BYTES = 1 << 20
_PYTHON = ("python", "-IS", "-c")
_OBSERVER = as_argument(
    ("inotify", "heartbeat_observer"),
    "from pathlib import Path; heartbeat_observer.follow([Path(sys.argv[1])])",
)
_PROBE = as_argument(("compose_probe",), "compose_probe.main(sys.argv[1])")


@asynccontextmanager
async def watched_heartbeat(project: ComposeProject, service: str, path: str) -> AsyncIterator[list[Beat]]:
    """The beats seen while the body runs: the list grows meanwhile and is complete after it.

    The observer is that of `make demo`, in a container that has the datastore. All containers and this program share
    one kernel and so one monotonic clock; where they don't (an engine in a virtual machine) no beat falls into a
    migration's time, and that is what the result says then. Raises as `_watched`.
    """
    beats: list[Beat] = []

    def take(line: str) -> None:
        at_ns, _, text = line.partition(" ")
        beats.append(Beat(int(at_ns), text))

    async with _watched(project, service, (*_PYTHON, _OBSERVER, path), take):
        yield beats


@asynccontextmanager
async def watched_connections(
    project: ComposeProject, service: str
) -> AsyncIterator[list[tuple[str, int, str, int]]]:
    """The TCP connections of a container while the body runs: complete after it, empty before. Raises as `_watched`."""
    found: list[tuple[str, int, str, int]] = []

    def take(line: str) -> None:
        found.extend(tuple(each) for each in json.loads(line))

    async with _watched(project, service, (*_PYTHON, _PROBE, "connections"), take):
        yield found


async def network_counters(project: ComposeProject, service: str) -> dict[str, dict[str, int]]:
    """The bytes that each of the container's addresses has carried: demo/compose_probe.py. Raises as `run`."""
    counters: dict[str, dict[str, int]] = json.loads(
        await project.execute(service, (*_PYTHON, _PROBE, "counters"))
    )
    return counters


@asynccontextmanager
async def _watched(
    project: ComposeProject, service: str, words: Sequence[str], take: Take
) -> AsyncIterator[None]:
    """A command that says one line when it is ready, works until its input is closed, and gives lines to `take`.

    :raises CommandFailed: it isn't ready in time, or its status isn't 0.
    """
    process = await asyncio.create_subprocess_exec(
        *project.command(service, words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_MAX_LINE_BYTES,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reader: asyncio.Task[None] | None = None
    try:
        try:
            ready = await asyncio.wait_for(process.stdout.readline(), _READY_S)
        except TimeoutError as error:
            raise CommandFailed(words, f"wasn't ready within {_READY_S:g} s", "") from error
        if not ready:
            raise CommandFailed(words, f"ended at its start in {service}", "")
        reader = asyncio.create_task(_collect(process.stdout, take))
        yield
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        if reader is not None:
            await reader
    if process.returncode != 0:
        raise CommandFailed(words, f"ended with status {process.returncode} in {service}", "")


async def _collect(lines: asyncio.StreamReader, take: Take) -> None:
    async for raw in lines:
        take(raw.decode("utf-8", "replace").rstrip("\n"))

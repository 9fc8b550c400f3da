"""The heartbeat's observer of `make demo`, run inside a container that has the shared datastore.

All containers and this program share one kernel and so one monotonic clock; where they don't (an engine in a virtual
machine) no beat falls into a migration's time, and the demonstration says that none was seen.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from demo.compose_probe import as_argument
from demo.compose_project import ComposeProject
from demo.heartbeat_observer import Beat

_MODULES = ("inotify", "heartbeat_observer")
_CALL = "from pathlib import Path; heartbeat_observer.follow(Path(sys.argv[1]))"
_END_S = 5.0
_MAX_LINE_BYTES = 1 << 20


@asynccontextmanager
async def watched_heartbeat(project: ComposeProject, service: str, path: str) -> AsyncIterator[list[Beat]]:
    """The beats seen while the body runs; all of them are in the list after it.

    :raises RuntimeError: the observing process failed.
    """
    beats: list[Beat] = []
    words = ("python", "-IS", "-c", as_argument(_MODULES, _CALL), path)
    process = await asyncio.create_subprocess_exec(
        *project.command(service, words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_MAX_LINE_BYTES,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reader = asyncio.create_task(_collect(process.stdout, beats))
    try:
        yield beats
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        await reader
    if process.returncode != 0:
        raise RuntimeError(f"the observer of {path} in {service} ended with status {process.returncode}")


async def _collect(lines: asyncio.StreamReader, beats: list[Beat]) -> None:
    async for raw in lines:
        at_ns, _, line = raw.decode("utf-8", "replace").partition(" ")
        beats.append(Beat(int(at_ns), line))

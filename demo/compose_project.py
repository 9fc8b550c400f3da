"""The docker engine and one docker-compose project, driven by their command line tools.

    async with engine(say):                                 one that answers, else our own for the while
        await build_image(say)
        async with ComposeProject("vpx-demo", settings).running() as project:
            await project.execute("esx01", ("python", "-m", "vpxa", ...))
        await project.leftovers()                           nothing

Every command runs in a session of its own, so that a Ctrl-C reaches only this program, which then takes down in order.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from demo.cluster_layout import PROJECT
from demo.errors import ClusterError

Say = Callable[[str], None]

_QUICK_S = 30.0
_ENGINE_S = 120.0
_BUILD_S = 1200.0
_UP_S = 120.0
_DOWN_S = 120.0
_LOOK_S = 0.5  # between two looks at what docker tells only when asked
_LOG_LINES = 40
_VMX_LOGS = (
    f"for log in /run/vpx/*/vmx.log; do [ ! -f $log ] || {{ echo $log; tail -n {_LOG_LINES} $log; }}; done"
)
_PROJECT_LABEL = "com.docker.compose.project"
_SERVICE_LABEL = "com.docker.compose.service"


class CommandFailed(ClusterError):
    """A command ended with another status than 0, or not in time; the end of what it said is in the message."""

    def __init__(self, words: Sequence[str], outcome: str, output: str) -> None:
        said = "\n".join(f"  {line}" for line in output.strip().splitlines()[-15:])
        # The words that say what was done; a program in the arguments would hide the rest.
        command = " ".join(word if len(word) < 80 else "..." for word in words)
        super().__init__(f"`{command}` {outcome}" + (f":\n{said}" if said else "."))
        self.words = tuple(words)
        self.output = output


class NotHealthy(ClusterError):
    """Containers weren't healthy in time."""


@dataclass(frozen=True)
class Container:
    """A container of the project, as docker tells of it now."""

    service: str
    state: str
    health: str
    restarts: int


async def run(
    words: Sequence[str],
    *,
    timeout_s: float = _QUICK_S,
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
    each_line: Say | None = None,
) -> str:
    """What the command says on standard output; `each_line` hears standard output and error while it runs.

    :raises CommandFailed: it can't be run, its status isn't 0, or it didn't end within `timeout_s`: then it's ended.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=PROJECT,
            env={**os.environ, **(environment or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if each_line else asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(words, f"can't be run ({error.strerror})", "") from error
    try:
        async with asyncio.timeout(timeout_s):
            if each_line is None:
                output, errors = await process.communicate(data)
            else:
                output, errors = await _follow(process, each_line), b""
    except TimeoutError as error:
        raise CommandFailed(words, f"didn't end within {timeout_s:g} s", "") from error
    finally:
        await _end(process)
    text = output.decode("utf-8", "replace")
    if process.returncode != 0:
        said = text if each_line else text + errors.decode("utf-8", "replace")
        raise CommandFailed(words, f"ended with status {process.returncode}", said)
    return text


async def _follow(process: asyncio.subprocess.Process, each_line: Say) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    output = bytearray()
    async for line in process.stdout:
        output += line
        if line.strip():
            each_line(line.decode("utf-8", "replace").rstrip())
    await process.wait()
    return bytes(output)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the command and what it started, if it still runs."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@asynccontextmanager
async def engine(say: Say) -> AsyncIterator[None]:
    """A docker engine while the body runs: the one that answers, else one of our own.

    :raises CommandFailed: none answers and none can be started.
    """
    script = str(PROJECT / "docker" / "engine.sh")
    try:
        await run(("docker", "version", "--format", "{{.Server.Version}}"), timeout_s=10.0)
        ours = False
    except CommandFailed:
        ours = True
    try:
        await run((script, "start"), timeout_s=_ENGINE_S, each_line=say)
        yield
    finally:
        if ours:
            await run((script, "stop"), timeout_s=_ENGINE_S, each_line=say)


async def build_image(say: Say) -> None:
    """Makes sure of the base image and builds vpx:local. :raises CommandFailed: one of them can't be had."""
    for script in ("base.sh", "build.sh"):
        await run((str(PROJECT / "docker" / script),), timeout_s=_BUILD_S, each_line=say)


class ComposeProject:
    """docker-compose.yml under a project name of its own. `settings` are the file's variables."""

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        self.name = name
        self._settings = dict(settings)
        self._compose: tuple[str, ...] = ()
        self._ids: dict[str, str] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ComposeProject"]:
        """The containers while the body runs; whatever happens, nothing of the project is left after it.

        :raises CommandFailed: they can't be started or taken down.
        """
        await self.down()  # of an earlier run that was killed outright
        try:
            await self._run_compose(("up", "-d", "--no-build"), _UP_S)
            self._ids = await self._containers()
            yield self
        finally:
            await self.down()

    async def down(self) -> None:
        """Takes containers, networks and volumes of the project away. Idempotent. :raises CommandFailed: it can't."""
        await self._run_compose(("down", "-v", "--remove-orphans"), _DOWN_S)

    def command(self, service: str, words: Sequence[str]) -> tuple[str, ...]:
        """The command line that runs `words` in the service's container, with standard input."""
        return ("docker", "exec", "-i", self._ids[service], *words)

    async def execute(
        self, service: str, words: Sequence[str], *, data: bytes = b"", timeout_s: float = _QUICK_S
    ) -> str:
        """Runs a command in the service's container. Raises as `run`."""
        return await run(self.command(service, words), timeout_s=timeout_s, data=data)

    async def containers(self) -> list[Container]:
        """Each of the project's containers now."""
        form = (
            '{{index .Config.Labels "' + _SERVICE_LABEL + '"}} {{.State.Status}} '
            "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}} {{.RestartCount}}"
        )
        text = await run(("docker", "inspect", "--format", form, *self._ids.values()))
        rows = [line.split() for line in text.splitlines() if line]
        return [Container(service, state, health, int(count)) for service, state, health, count in rows]

    async def wait_until_healthy(self, timeout_s: float) -> None:
        """Until docker's health checks have found every container healthy. :raises NotHealthy: not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                # Health has docker events, but none for what was so before one listens: looking is simpler.
                while not all(one.health == "healthy" for one in await self.containers()):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            states = ", ".join(f"{one.service} {one.state}, {one.health}" for one in await self.containers())
            raise NotHealthy(f"Not all containers are healthy within {timeout_s:g} s: {states}.") from error

    async def wait_for_restart(self, service: str, before: int, timeout_s: float) -> None:
        """Until docker has restarted the container once more than `before`. :raises NotHealthy: not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    one = next(one for one in await self.containers() if one.service == service)
                    if one.restarts > before and one.state == "running":
                        return
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            raise NotHealthy(f"{service} wasn't restarted within {timeout_s:g} s: {one}.") from error

    async def logs(self) -> dict[str, str]:
        """The last lines of each container's log and of its VMs' vmx, by name; what can't be read says why."""
        found = {}
        for service, identifier in sorted((await self._containers()).items()):
            found[service] = await _lines_of("docker", "logs", "--tail", str(_LOG_LINES), identifier)
            tails = await _lines_of("docker", "exec", identifier, "sh", "-c", _VMX_LOGS)
            if tails:
                found[f"{service}'s vmx"] = tails
        return found

    async def leftovers(self) -> list[str]:
        """What docker still has of the project: containers, networks, volumes."""
        chosen = ("-q", "--filter", f"label={_PROJECT_LABEL}={self.name}")
        kinds = {"container": ("ps", "-a"), "network": ("network", "ls"), "volume": ("volume", "ls")}
        return [
            f"{kind} {identifier}"
            for kind, words in kinds.items()
            for identifier in (await run(("docker", *words, *chosen))).split()
        ]

    async def _containers(self) -> dict[str, str]:
        """Containers' ids by their service's name."""
        form = '{{.Label "' + _SERVICE_LABEL + '"}} {{.ID}}'
        chosen = ("--filter", f"label={_PROJECT_LABEL}={self.name}")
        text = await run(("docker", "ps", "-a", *chosen, "--format", form))
        return dict(line.split() for line in text.splitlines() if line)

    async def _run_compose(self, words: Sequence[str], timeout_s: float) -> None:
        if not self._compose:
            self._compose = await _find_compose()
        command = (*self._compose, "-p", self.name, *words)
        await run(command, timeout_s=timeout_s, environment=self._settings)


async def _lines_of(*words: str) -> str:
    """All that a command says, or why it can't be had."""
    lines: list[str] = []
    try:
        await run(words, each_line=lines.append)
    except CommandFailed as error:
        return str(error)
    return "\n".join(lines)


async def _find_compose() -> tuple[str, ...]:
    """`docker compose` where it is installed, else `docker-compose`. :raises CommandFailed: neither is."""
    try:
        await run(("docker", "compose", "version"))
    except CommandFailed:
        await run(("docker-compose", "version"))
        return ("docker-compose",)
    return ("docker", "compose")

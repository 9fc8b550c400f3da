"""Named points in the code at which a test can stop, break or kill a process: exactly there, not "about then".

    await failpoint("source.stun")                                     in the code: one look at an empty dict
    VPX_FAILPOINTS="source.stun=pause:/run/t.sock;source.confirm=kill" in the process's environment, read once by `arm`

    error        FailpointError is raised there
    kill         the process ends there, as by SIGKILL
    pause:PATH   the process connects to the unix socket PATH, sends the point's name and a line feed, and goes on when
                 the other side has closed the connection. Nobody listens there: it goes on at once.

Each point acts once; when it is passed again nothing happens. Off by default: only tests set the variable. A name that
the process doesn't have, or an unknown action, ends its start.
"""

import asyncio
import os
import signal
from collections.abc import Collection, Mapping

import structlog

from runtime.daemon.settings import SettingsError

VARIABLE = "VPX_FAILPOINTS"

_armed: dict[str, str] = {}
_log = structlog.get_logger(__name__)


class FailpointError(Exception):
    """What the action `error` raises at the point `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"failpoint {name}")
        self.name = name


def arm(environment: Mapping[str, str], known: Collection[str]) -> None:
    """Take the actions from the environment; call once, at the process's start. `known`: all points that it has.

    :raises SettingsError: an entry isn't `name=action`, or its name or action isn't known; nothing is armed then.
    """
    actions: dict[str, str] = {}
    for entry in filter(None, environment.get(VARIABLE, "").split(";")):
        name, _, action = entry.partition("=")
        if name not in known:
            raise SettingsError(VARIABLE, f"names no failpoint of this process: {name!r}")
        if action not in ("error", "kill") and not action.removeprefix("pause:").startswith("/"):
            raise SettingsError(
                VARIABLE, f'must be "error", "kill" or "pause:/path" for {name}, not {action!r}'
            )
        actions[name] = action
    _armed.clear()
    _armed.update(actions)
    if actions:
        _log.warning("failpoints_armed", failpoints=sorted(actions))


async def failpoint(name: str) -> None:
    """Do what is armed for this point, once; nothing where nothing is.

    :raises FailpointError: its action is `error`.
    """
    action = _armed.pop(name, None) if _armed else None
    if action is None:
        return
    _log.warning("failpoint", name=name, action=action)
    if action == "error":
        raise FailpointError(name)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    await _pause(name, action.removeprefix("pause:"))


async def _pause(name: str, path: str) -> None:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        _log.warning("failpoint_not_paused", name=name, reason=str(error))
        return
    try:
        writer.write(f"{name}\n".encode())
        await reader.read()
    finally:
        writer.close()

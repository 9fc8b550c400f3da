"""Failpoints: off unless armed, exactly once, nothing unknown."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import failpoint
from runtime.daemon.settings import SettingsError
from runtime.failpoint import FailpointError, arm
from tests.framework.failpoint_pause import FailpointPause

KNOWN = {"a.first", "a.second"}


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm({}, KNOWN)


async def test_nothing_armed_nothing_happens() -> None:
    arm({}, KNOWN)
    async with asyncio.timeout(1):
        await failpoint.failpoint("a.first")
    assert not failpoint._armed


async def test_error_is_raised_once_at_its_point() -> None:
    arm({failpoint.VARIABLE: "a.first=error"}, KNOWN)
    await failpoint.failpoint("a.second")
    with pytest.raises(FailpointError) as raised:
        await failpoint.failpoint("a.first")
    assert raised.value.name == "a.first"
    await failpoint.failpoint("a.first")


async def test_pause_tells_its_name_and_waits_until_it_is_released(tmp_path: Path) -> None:
    async with FailpointPause(tmp_path / "s") as pause:
        arm({failpoint.VARIABLE: f"a.first={pause.action}"}, KNOWN)
        standing = asyncio.create_task(failpoint.failpoint("a.first"))
        await pause.reached()
        assert not standing.done()
        pause.release()
        await standing


async def test_pause_where_nobody_listens_goes_on(tmp_path: Path) -> None:
    arm({failpoint.VARIABLE: f"a.first=pause:{tmp_path}/none"}, KNOWN)
    await failpoint.failpoint("a.first")
    assert not failpoint._armed


async def test_pause_can_be_cancelled(tmp_path: Path) -> None:
    async with FailpointPause(tmp_path / "s") as pause:
        arm({failpoint.VARIABLE: f"a.first={pause.action}"}, KNOWN)
        standing = asyncio.create_task(failpoint.failpoint("a.first"))
        await pause.reached()
        standing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await standing


@pytest.mark.parametrize(
    "setting", ["a.third=error", "error", "a.first", "a.first=", "a.first=pause:relative", "a.first=reboot"]
)
def test_unknown_name_or_action_is_refused_and_nothing_is_armed(setting: str) -> None:
    with pytest.raises(SettingsError):
        arm({failpoint.VARIABLE: f"a.second=error;{setting}"}, KNOWN)
    assert not failpoint._armed


def test_kill_ends_the_process_as_sigkill_does() -> None:
    program = (
        "import asyncio, os\n"
        "from runtime import failpoint\n"
        "failpoint.arm(os.environ, {'a.first'})\n"
        "asyncio.run(failpoint.failpoint('a.first'))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env={failpoint.VARIABLE: "a.first=kill"}, check=False, timeout=30
    )
    assert ended.returncode == -signal.SIGKILL

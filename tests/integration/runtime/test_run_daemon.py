"""run_daemon as processes: signals and exit statuses."""

import asyncio
import signal
import sys

import pytest

_PRELUDE = """
import asyncio, sys
from runtime.daemon.log_setup import setup_logging
from runtime.daemon.run import run_daemon
from runtime.daemon.settings import Settings
from runtime.faults import ResourceInUse
async def main(stop):
    {body}
sys.exit(run_daemon(main))
"""
_WAITS = 'setup_logging("hostd"); print("ready", flush=True); await stop.wait()'


async def _start(body: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PRELUDE.replace("{body}", body),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _finish(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    try:
        async with asyncio.timeout(30):
            _, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, stderr.decode()


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"ready\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_daemon_on_a_signal_stops_in_good_order(number: signal.Signals) -> None:
    process = await _start(_WAITS + '; print("stopped in order", file=sys.stderr)')
    await _ready(process)
    process.send_signal(number)
    status, stderr = await _finish(process)
    assert status == 0
    assert "stopped in order" in stderr
    assert number.name in stderr


async def test_run_daemon_on_a_second_signal_exits_at_once() -> None:
    process = await _start(_WAITS + '; print("ready", flush=True); await asyncio.Event().wait()')
    await _ready(process)
    process.send_signal(signal.SIGTERM)
    await _ready(process)
    process.send_signal(signal.SIGTERM)
    assert (await _finish(process))[0] == 130


async def test_run_daemon_that_returns_exits_with_0_on_uvloop() -> None:
    process = await _start("print(type(asyncio.get_running_loop()).__module__, file=sys.stderr)")
    assert await _finish(process) == (0, "uvloop\n")


async def test_run_daemon_with_a_bad_setting_says_it_in_one_line() -> None:
    process = await _start('Settings({"PORT": "x"}).integer("PORT")')
    assert await _finish(process) == (2, "settings: PORT must be a whole number, not 'x'\n")


async def test_run_daemon_that_fails_logs_it_once() -> None:
    status, stderr = await _finish(await _start('setup_logging("hostd", json=True); raise ValueError("odd")'))
    assert status == 1
    assert stderr.count("daemon_failed") == 1
    assert stderr.count("\n") == 1
    assert "ValueError: odd" in stderr


async def test_run_daemon_with_a_fault_says_it_without_traceback() -> None:
    body = 'setup_logging("hostd"); raise ResourceInUse("Can\'t listen.", "address", "a:1")'
    status, stderr = await _finish(await _start(body))
    assert status == 1
    assert "Can't listen." in stderr
    assert "Traceback" not in stderr

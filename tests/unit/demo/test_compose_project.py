"""Commands that the demonstration on docker-compose runs."""

import asyncio
import os
from pathlib import Path

import pytest

from demo.compose_project import CommandFailed, run


async def test_run_of_a_command_gives_its_output_and_takes_input() -> None:
    assert await run(("cat",), data=b"one\ntwo\n") == "one\ntwo\n"


async def test_run_with_a_listener_hears_both_outputs_line_by_line() -> None:
    lines: list[str] = []
    await run(("sh", "-c", "echo one; echo two >&2"), each_line=lines.append)
    assert sorted(lines) == ["one", "two"]


async def test_run_of_a_failing_command_tells_status_and_last_words() -> None:
    with pytest.raises(CommandFailed, match=r"status 3(.|\n)*bad luck"):
        await run(("sh", "-c", "echo bad luck >&2; exit 3"))


async def test_run_of_no_command_is_a_failure_of_the_command() -> None:
    with pytest.raises(CommandFailed, match="can't be run"):
        await run(("/nonexistent/docker",))


async def test_run_that_takes_too_long_ends_the_command_and_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(CommandFailed, match=r"within 0\.5 s"):
        await run(("sh", "-c", f"sleep 600 & echo $! >{note}; wait"), timeout_s=0.5)
    await _until_gone(int(note.read_text()))


async def test_run_that_is_cancelled_ends_the_command(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    started = asyncio.Event()
    words = ("sh", "-c", f"echo $$ >{note}; echo started; exec sleep 600")
    task = asyncio.create_task(run(words, each_line=lambda _line: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until_gone(int(note.read_text()))


async def _until_gone(pid: int) -> None:
    """Its remains may be taken a moment later by whoever adopted it."""
    async with asyncio.timeout(10):
        while _lives(pid):
            await asyncio.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

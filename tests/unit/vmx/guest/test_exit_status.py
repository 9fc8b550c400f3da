"""How the end of a process is told."""

from __future__ import annotations

import os
import subprocess

import pytest

from vmx.guest.exit_status import ExitStatus


@pytest.mark.parametrize(
    ("script", "expected", "text"),
    [
        ("exit 0", ExitStatus(exit_code=0), "exit code 0"),
        ("exit 3", ExitStatus(exit_code=3), "exit code 3"),
        ("kill -KILL $$", ExitStatus(signal_number=9), "signal SIGKILL"),
        ("kill -40 $$", ExitStatus(signal_number=40), "signal 40"),
    ],
)
def test_exit_status_of_child_is_told(script: str, expected: ExitStatus, text: str) -> None:
    process = subprocess.Popen(["sh", "-c", script])
    result = os.waitid(os.P_PID, process.pid, os.WEXITED)
    process.returncode = 0
    assert result is not None
    status = ExitStatus.from_waitid(result)
    assert status == expected
    assert str(status) == text
    assert status.is_clean == (script == "exit 0")


def test_exit_status_unknown_says_so() -> None:
    assert str(ExitStatus()) == "unknown exit status"
    assert not ExitStatus().is_clean

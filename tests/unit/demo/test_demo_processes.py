"""Processes by identity."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from demo.processes import ProcessId, end, identify, is_alive, send, started_for

_IGNORES_TERM = (
    "import signal,sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
)


_FIRST_THREAD_ENDS = (
    "import ctypes,threading,time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    "print(flush=True); ctypes.CDLL(None).syscall(60, 0)"  # exit(2): of this thread alone
)


def _start(*words: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", *words],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def _identified(child: "subprocess.Popen[str]") -> ProcessId:
    process = identify(child.pid)
    assert process is not None
    return process


def test_end_asks_first_and_kills_who_doesnt_listen() -> None:
    with _start("import time; time.sleep(60)") as polite, _start(_IGNORES_TERM) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        first, second = _identified(polite), _identified(stubborn)
        assert end([first, second], grace_s=0.3) == [second]
        assert not is_alive(first)
        assert not is_alive(second)
        polite.returncode = stubborn.returncode = 0  # reaped by end()


def test_signals_never_reach_another_process_with_the_same_pid() -> None:
    with _start("import time; time.sleep(60)") as child:
        real = _identified(child)
        impostor = ProcessId(real.pid, real.start_time - 1)
        assert end([impostor], grace_s=0.1) == []
        assert not send(impostor, signal.SIGKILL)
        assert is_alive(real)
        child.kill()


def test_process_lives_until_its_last_thread_has_ended() -> None:
    with _start(_FIRST_THREAD_ENDS) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while " Z " not in Path(f"/proc/{child.pid}/stat").read_text():
            time.sleep(0.01)
        process = _identified(child)
        assert is_alive(process)
        assert end([process], grace_s=0.1) == []
        assert not is_alive(process)
        child.returncode = 0


def test_started_for_finds_by_settings_and_not_by_a_mention(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    with (
        _start(sleep, VMX_RUN_DIR=f"{tmp_path}/esx01/vm") as vmx,
        _start(sleep, f"{tmp_path}/esx01/file") as editor,
        _start(sleep, VMX_RUN_DIR=f"{tmp_path}x/esx01") as neighbour,
    ):
        assert started_for(tmp_path) == [_identified(vmx)]
        for child in (vmx, editor, neighbour):
            child.kill()


def test_identify_of_nobody_is_none() -> None:
    with _start("pass") as child:
        child.wait()
    assert identify(child.pid) is None

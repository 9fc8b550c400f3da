"""Processes are known by pid and start time, and waited for without being their parent."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from hostd.host.process import ProcessHandle, ProcessId, identify, read_pid_file


async def test_handle_sees_the_end_of_a_stranger(tmp_path: Path) -> None:
    shell = subprocess.run(["sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/pid"], check=True)
    assert shell.returncode == 0
    process = identify(int((tmp_path / "pid").read_text()))
    assert process is not None
    handle = ProcessHandle.open(process)
    assert handle is not None
    assert not await handle.wait(0.05)
    handle.kill()
    assert await handle.wait(10)
    assert not handle.alive
    handle.kill()
    handle.close()


async def test_handle_reaps_a_child() -> None:
    child = subprocess.Popen(["true"])
    process = ProcessId(child.pid, 0)
    for _ in range(100):
        found = identify(child.pid)
        if found is None:
            break
        process = found
        handle = ProcessHandle.open(process)
        if handle is not None:
            assert await handle.wait(10)
            handle.close()
    assert identify(child.pid) is None
    child.wait()


def test_identify_zombie_or_nobody_is_none() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    child.wait()
    assert identify(child.pid) is None


async def test_open_reused_pid_is_refused() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert ProcessHandle.open(ProcessId(me.pid, me.start_time - 1)) is None
    handle = ProcessHandle.open(me)
    assert handle is not None
    handle.close()
    await asyncio.sleep(0)


def test_read_pid_file_takes_two_numbers_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vmx.pid"
    assert read_pid_file(path) is None
    for text, expected in (("12 34\n", ProcessId(12, 34)), ("12", None), ("", None), ("x" * 999, None)):
        path.write_text(text)
        assert read_pid_file(path) == expected


async def test_process_whose_first_thread_ended_is_no_zombie_until_the_last_one_has() -> None:
    program = (
        "import ctypes,threading,time; threading.Thread(target=time.sleep, args=(60,)).start(); "
        "print(flush=True); ctypes.CDLL(None).syscall(60, 0)"  # exit(2): of this thread alone
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while " Z " not in Path(f"/proc/{child.pid}/stat").read_text():
            await asyncio.sleep(0.01)
        process = identify(child.pid)
        assert process is not None
        handle = ProcessHandle.open(process)
        assert handle is not None
        handle.kill()
        assert await handle.wait(timeout_s=10)
        assert identify(child.pid) is None
        handle.close()
        child.returncode = 0

"""Making another process call into the kernel leaves it exactly as it was, whatever it was doing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.framework.fake_ram_writer import FakeRamWriter, fake_ram_writer
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES
from vmx.trace.errors import TargetCallError, TargetGoneError, TracerUnavailable
from vmx.trace.pagemap_scan import PagemapScanTracer
from vmx.trace.remote_call import call_in_process
from vmx.trace.tracer import TraceTarget
from vmx.trace.userfault import arm, find_userfaultfd, obtain_userfaultfd

RAM_BYTES = 64 * PAGE_BYTES
CALLS = 50
SYS_READ, SYS_CLOSE, SYS_GETPID, SYS_CLOCK_NANOSLEEP, SYS_PPOLL = 0, 3, 39, 230, 271


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest_memory = GuestMemory.create("test-ram", RAM_BYTES)
    yield guest_memory
    guest_memory.close()


@pytest.fixture
def guest(memory: GuestMemory) -> Iterator[FakeRamWriter]:
    with fake_ram_writer(memory) as process:
        yield process


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def mask_of(pid: int) -> list[str]:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return re.findall(r"^Sig(?:Blk|Ign|Cgt):.*$|^TracerPid:.*$", status.read(), re.MULTILINE)


def wait_until_blocked_in(pid: int, number: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as syscall:
            if syscall.read().split()[0] == str(number):
                return
        time.sleep(0.002)
    raise AssertionError(f"the process isn't in system call {number}")


def call_for_ever(pid: int) -> None:
    while True:
        call_in_process(pid, SYS_GETPID, 0)


@pytest.mark.parametrize(("command", "number"), [("sleep", SYS_CLOCK_NANOSLEEP), ("ppoll", SYS_PPOLL)])
def test_call_process_sleeping_sleeps_on_in_full(guest: FakeRamWriter, command: str, number: int) -> None:
    guest.order(f"{command} 1.5")
    assert guest.answer() == "blocking"
    wait_until_blocked_in(guest.pid, number)
    before = mask_of(guest.pid)
    for _ in range(CALLS):
        assert call_in_process(guest.pid, SYS_GETPID, 0) == guest.pid
    assert mask_of(guest.pid) == before
    assert guest.answer() == "0 errno=0 slept_in_full=True"


def test_call_process_blocked_in_read_reads_on(guest: FakeRamWriter) -> None:
    guest.order("receive")
    assert guest.answer() == "blocking"
    wait_until_blocked_in(guest.pid, SYS_READ)
    for _ in range(CALLS):
        assert call_in_process(guest.pid, SYS_GETPID, 0) == guest.pid
    guest.order("ping")
    assert guest.answer() == r"5 'ping\n'"


def test_call_process_computing_under_timer_signals_computes_right(guest: FakeRamWriter) -> None:
    guest.order("compute 1.0")
    assert guest.answer() == "blocking"
    for _ in range(CALLS):
        assert call_in_process(guest.pid, SYS_GETPID, 0) == guest.pid
    assert guest.answer() == "wrong=0 worked=True alarms=True"


def test_call_process_stopped_by_job_control_stays_stopped(guest: FakeRamWriter) -> None:
    os.kill(guest.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, guest.pid, os.WSTOPPED | os.WNOWAIT)
    assert call_in_process(guest.pid, SYS_GETPID, 0) == guest.pid
    deadline = time.monotonic() + 5
    while state_of(guest.pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.002)
    assert state_of(guest.pid) == "T"
    os.kill(guest.pid, signal.SIGCONT)
    guest.write(0, 1, 1)


def test_call_refused_by_the_kernel_returns_its_errno(guest: FakeRamWriter) -> None:
    assert call_in_process(guest.pid, SYS_CLOSE, 999) == -9
    guest.write(0, 1, 1)


def test_call_process_being_traced_already_is_refused_and_typed(guest: FakeRamWriter) -> None:
    # A process can have one tracer only.
    script = (
        "import ctypes,sys,time; l=ctypes.CDLL(None); "
        f"assert l.ptrace(0x4206, {guest.pid}, None, None) == 0; print('on', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as tracer:
        try:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"on\n"
            with pytest.raises(TargetCallError) as refused:
                call_in_process(guest.pid, SYS_GETPID, 0)
            assert refused.value.errno
        finally:
            tracer.kill()
    guest.write(0, 1, 1)


def test_call_process_dead_is_typed_and_leaves_the_exit_status(guest: FakeRamWriter) -> None:
    guest.process.kill()
    os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TargetGoneError):
        call_in_process(guest.pid, SYS_GETPID, 0)
    assert guest.process.wait() == -signal.SIGKILL
    with pytest.raises(TargetGoneError):
        call_in_process(guest.pid, SYS_GETPID, 0)
    with pytest.raises(TargetGoneError):
        find_userfaultfd(guest.pid)


def test_call_process_killed_in_the_middle_ends_typed(memory: GuestMemory) -> None:
    for delay_s in (0.0, 0.0002, 0.0005, 0.001):
        with fake_ram_writer(memory) as victim:
            killer = subprocess.Popen(
                [sys.executable, "-c", f"import os,time; time.sleep({delay_s}); os.kill({victim.pid}, 9)"]
            )
            try:
                with pytest.raises(TargetGoneError):
                    call_for_ever(victim.pid)
            finally:
                killer.wait()
            assert victim.process.wait() == -signal.SIGKILL


def test_find_userfaultfd_process_without_one_finds_none(guest: FakeRamWriter) -> None:
    assert find_userfaultfd(guest.pid) is None


def test_find_userfaultfd_obtained_before_finds_the_same_one(guest: FakeRamWriter) -> None:
    obtained = obtain_userfaultfd(guest.pid)
    found = find_userfaultfd(guest.pid)
    try:
        assert found is not None
        assert os.fstat(found).st_ino == os.fstat(obtained).st_ino
        assert not os.get_inheritable(found)
        arm(found)
    finally:
        os.close(obtained)
        if found is not None:
            os.close(found)


def test_arm_descriptor_of_another_kind_is_unavailable() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(TracerUnavailable):
        arm(read_end)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.qemu
def test_obtain_userfaultfd_real_qemu_traces_its_ram_and_leaves_it_running() -> None:
    memory = GuestMemory.create("qemu-ram", 64 << 20)
    command = [
        "qemu-system-x86_64",
        *("-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64M", "-qmp", "stdio"),
        *(
            "-object",
            f"memory-backend-file,id=ram0,size={64 << 20},mem-path=/proc/self/fd/{memory.fd},share=on",
        ),
        *("-machine", "pc-q35-7.2,memory-backend=ram0"),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(memory.fd,)
    ) as qemu:
        try:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            assert b'"QMP"' in qemu.stdout.readline()
            fd = obtain_userfaultfd(qemu.pid)
            tracer = PagemapScanTracer(TraceTarget(qemu.pid, memory, fd))
            tracer.start()
            tracer.collect()
            qemu.stdin.write(b'{"execute":"qmp_capabilities"}{"execute":"cont"}')
            qemu.stdin.flush()
            written = 0
            deadline = time.monotonic() + 20
            while not written and time.monotonic() < deadline:  # the firmware's first steps
                written = len(tracer.collect())
            assert written
            tracer.stop()
            qemu.stdin.write(b'{"execute":"quit"}')
            qemu.stdin.flush()
            assert qemu.wait(10) == 0
            os.close(fd)
        finally:
            qemu.kill()
            memory.close()

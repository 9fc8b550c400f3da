"""One system call made by another process on its own behalf, through ptrace, leaving no trace in it.

userfaultfd(2) works on the address space of the process that calls it, and QEMU doesn't call it for us. So its
main thread is stopped, made to run one `syscall` instruction that is already in its memory (nothing is written
into its code), and put back, register for register. Its other threads go on running.

    PTRACE_SEIZE, PTRACE_INTERRUPT ─> stopped ─ save registers, signal mask; block signals; set the call up
      ─PTRACE_SYSCALL─> at the call's entry ─PTRACE_SYSCALL─> at its exit: result
      ─PTRACE_INTERRUPT, PTRACE_CONT─> stopped again ─ put mask and registers back ─ PTRACE_DETACH

The last interrupt matters: a thread that slept in a system call was taken out of it with -ERESTARTxxx, and the
kernel turns that into a restart of the call only on the way out of that kind of stop. Detaching at the call's
exit would show the raw code to the program.

What a program may still notice: calls that the kernel doesn't restart after any stop (signal(7): epoll_wait,
semop, ...) return EINTR, and a restartable sequence (rseq) of the main thread interrupted in the middle isn't aborted.

Sources: ptrace(2), signal(7), Linux kernel/ptrace.c, kernel/signal.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from vmx.trace.errors import TargetCallError, TargetGoneError

CALL_DEADLINE_S: Final = 5.0

_CONT, _GETREGS, _SETREGS, _DETACH, _SYSCALL = 7, 12, 13, 17, 24
_SETOPTIONS, _SEIZE, _INTERRUPT = 0x4200, 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_OPTION_TRACESYSGOOD, _OPTION_EXITKILL = 0x1, 0x100000
_EVENT_STOP: Final = 128
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_WALL: Final = 0x40000000
_SYSCALL_INSTRUCTION: Final = b"\x0f\x05"
_USER_64BIT_CODE_SEGMENT: Final = 0x33
_SIGNAL_SET_BYTES: Final = 8


# In the order of struct user_regs_struct of x86-64, sys/user.h.
_REGISTER_NAMES: Final = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)


class _Registers(ctypes.Structure):
    """A thread's registers as ptrace gives and takes them."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTER_NAMES]
    rax: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def call_in_process(pid: int, number: int, argument: int) -> int:
    """Make process `pid` run system call `number` with one argument; returns what the call returned, an error as
    -errno. Blocks, 1 ms as a rule and CALL_DEADLINE_S at most.

    Nobody else may wait for `pid` (waitpid, Popen.poll, an event loop's child watcher) meanwhile: they would take
    ptrace's stop for the process's end. Should this process die while the registers are changed, `pid` is killed
    rather than left to run with them.

    :raises TargetGoneError: the process has ended or ended meanwhile.
    :raises TargetCallError: not permitted, not x86-64, or it didn't stop in time; the process goes on as it was.
    """
    if platform.machine() != "x86_64":
        raise TargetCallError(pid, "calling into the kernel from another process", errno.ENOSYS)
    # ptrace belongs to one OS thread. This one ends right after, and with it, by the kernel, any attachment that
    # an error left behind.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ptrace") as tracer:
        return tracer.submit(_call, pid, number, argument).result()


def _call(pid: int, number: int, argument: int) -> int:
    instruction = _find_syscall_instruction(pid)
    tracee = _Tracee(pid)
    try:
        return tracee.call(instruction, number, argument)
    finally:
        tracee.detach()


class _Tracee:
    """The main thread of a process while it is attached."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._deadline = time.monotonic() + CALL_DEADLINE_S
        self._held_back: list[int] = []
        self._stopped = False
        self._request(_SEIZE, _OPTION_TRACESYSGOOD, "PTRACE_SEIZE")

    def call(self, instruction: int, number: int, argument: int) -> int:
        """Stop, call, and put everything back; the thread is left stopped."""
        self._request(_INTERRUPT, 0, "PTRACE_INTERRUPT")
        while self._wait() >> 8 != _EVENT_STOP:
            self._resume(_CONT, self._stop_signal)
        saved, mask = _Registers(), ctypes.c_uint64()
        self._transfer(_GETREGS, 0, saved)
        self._transfer(_GETSIGMASK, _SIGNAL_SET_BYTES, mask)
        if saved.cs != _USER_64BIT_CODE_SEGMENT:
            raise TargetCallError(self._pid, "calling as a 64-bit program", errno.ENOEXEC)
        self._request(_SETOPTIONS, _OPTION_TRACESYSGOOD | _OPTION_EXITKILL, "PTRACE_SETOPTIONS")
        try:
            self._transfer(_SETSIGMASK, _SIGNAL_SET_BYTES, ctypes.c_uint64(2**64 - 1))
            return self._step(saved, instruction, number, argument)
        finally:
            # After a deadline the thread isn't stopped and can't be put back: EXITKILL then ends it.
            if self._stopped:
                self._transfer(_SETREGS, 0, saved)
                self._transfer(_SETSIGMASK, _SIGNAL_SET_BYTES, mask)
                self._request(_SETOPTIONS, _OPTION_TRACESYSGOOD, "PTRACE_SETOPTIONS")

    def detach(self) -> None:
        """Let go of the thread; a signal that came in between is delivered now."""
        if not self._stopped:
            return  # running or dead: the end of this OS thread detaches it
        self._request(_DETACH, 0, "PTRACE_DETACH")
        for number in self._held_back:
            os.kill(self._pid, number)

    def _step(self, saved: _Registers, instruction: int, number: int, argument: int) -> int:
        call = _Registers.from_buffer_copy(saved)
        call.rip, call.rax, call.rdi = instruction, number, argument
        call.orig_rax = (
            2**64 - 1
        )  # "not in a system call": or the kernel would restart the interrupted one now
        self._transfer(_SETREGS, 0, call)
        self._run_to_syscall_stop()
        self._transfer(_GETREGS, 0, call)
        if call.orig_rax != number:
            raise TargetCallError(self._pid, "entering the system call", errno.EFAULT)
        self._run_to_syscall_stop()
        self._transfer(_GETREGS, 0, call)
        self._request(_INTERRUPT, 0, "PTRACE_INTERRUPT")
        self._resume(_CONT, 0)
        while self._wait() >> 8 != _EVENT_STOP:
            self._hold_back()
            self._resume(_CONT, 0)
        return ctypes.c_int64(call.rax).value

    def _run_to_syscall_stop(self) -> None:
        self._resume(_SYSCALL, 0)
        while (status := self._wait()) != _SYSCALL_STOP:
            if (
                status >> 8 != _EVENT_STOP
            ):  # an event stop here is a job-control stop: it takes effect at detach
                self._hold_back()
            self._resume(_SYSCALL, 0)

    def _hold_back(self) -> None:
        # All signals are blocked but SIGSTOP, and faults, which mean that the instruction wasn't what it seemed.
        if self._stop_signal != signal.SIGSTOP:
            raise TargetCallError(self._pid, f"the call, by signal {self._stop_signal},", errno.EFAULT)
        self._held_back.append(self._stop_signal)

    def _wait(self) -> int:
        """The next stop: signal | event << 8. Polled, since waitid(2) knows no deadline, and without reaping, since
        the exit status belongs to the process's parent."""
        pause_s = 0.0
        while True:
            try:
                seen = os.waitid(
                    os.P_PID, self._pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL
                )
                if seen is not None and seen.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                    raise TargetGoneError(self._pid)
                stop = os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WNOHANG | _WALL)
            except ChildProcessError as gone:
                raise TargetGoneError(self._pid) from gone
            if stop is not None:
                self._stopped = True
                self._stop_signal = stop.si_status & 0x7F
                return stop.si_status
            if time.monotonic() > self._deadline:
                raise TargetCallError(self._pid, "waiting for it to stop", errno.ETIMEDOUT)
            time.sleep(pause_s)
            pause_s = min(pause_s + 0.00002, 0.001)

    def _resume(self, request: int, deliver: int) -> None:
        self._stopped = False
        self._request(request, deliver, "resuming")

    def _request(self, request: int, data: int, step: str) -> None:
        if _libc.ptrace(request, self._pid, None, data) == -1:
            code = ctypes.get_errno()
            if code == errno.ESRCH:
                self._stopped = False
                raise TargetGoneError(self._pid)
            raise TargetCallError(self._pid, step, code)

    def _transfer(self, request: int, size: int, block: ctypes.Structure | ctypes.c_uint64) -> None:
        if _libc.ptrace(request, self._pid, size, ctypes.byref(block)) == -1:
            code = ctypes.get_errno()
            if code == errno.ESRCH:
                self._stopped = False
                raise TargetGoneError(self._pid)
            raise TargetCallError(self._pid, "reading or setting its registers", code)


def _find_syscall_instruction(pid: int) -> int:
    """The address of a `syscall` instruction in the process: the kernel's vdso has one, else a library."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            lines = [line.split() for line in maps]
        executable = [
            line for line in lines if b"x" in line[1] and len(line) > 5 and line[5] != b"[vsyscall]"
        ]
        executable.sort(key=lambda line: line[5] != b"[vdso]")
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in executable:
                start, end = (int(bound, 16) for bound in line[0].split(b"-"))
                at = os.pread(memory.fileno(), end - start, start).find(_SYSCALL_INSTRUCTION)
                if at >= 0:
                    return start + at
    except (FileNotFoundError, ProcessLookupError) as gone:
        raise TargetGoneError(pid) from gone
    except OSError as refused:
        raise TargetCallError(pid, "reading its memory", refused.errno or errno.EIO) from refused
    if not lines:
        raise TargetGoneError(pid)  # a zombie has no memory
    raise TargetCallError(pid, "finding a system call instruction", errno.ENOENT)

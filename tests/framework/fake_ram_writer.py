"""Fake of a guest's process: maps a memfd as its RAM and writes pages of it on command, so that page tracers meet a
real process with real page tables without QEMU.

Run as `python fake_ram_writer.py FD RAM_BYTES LAYOUT`; one command a line on stdin, one answer a line on stdout.
LAYOUT: `whole` (one mapping), `pieces` (two halves at unrelated addresses) or `twice` (mapped whole, two times; writes
go through the second).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO

from vmx.guest.memory import GuestMemory

PAGE_BYTES = 4096
_ANSWER_DEADLINE_S = 60.0


class FakeRamWriter:
    """The parent's side: one fake guest process and the commands it takes."""

    def __init__(self, memory: GuestMemory, layout: str = "whole") -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.framework.fake_ram_writer",
                str(memory.fd),
                str(memory.ram_bytes),
                layout,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(memory.fd,),
        )
        self.pid = self.process.pid
        assert self.answer() == "up"

    def write(self, first_page: int, page_count: int, value: int) -> None:
        """Fill pages with a byte value; returns when it is done."""
        assert self.ask(f"write {first_page} {page_count} {value}") == "done"

    def stamp(self, pages: list[int], value: int) -> None:
        """Change the first byte of each of some pages."""
        assert self.ask(f"stamp {value} {' '.join(map(str, pages))}") == "done"

    def read(self, first_page: int, page_count: int) -> None:
        """Touch pages for reading only."""
        assert self.ask(f"read {first_page} {page_count}") == "done"

    def start_storm(self, threads: int) -> None:
        """Threads that write random pages as fast as they can, until stop_storm()."""
        assert self.ask(f"storm {threads}") == "done"

    def stop_storm(self) -> int:
        """End the storm; returns how many pages it wrote. No write happens after it."""
        return int(self.ask("calm"))

    def ask(self, command: str) -> str:
        """One command, one answer."""
        self.order(command)
        return self.answer()

    def order(self, command: str) -> None:
        """A command whose answer is fetched later."""
        _pipe(self.process.stdin).write(command.encode() + b"\n")
        _pipe(self.process.stdin).flush()

    def answer(self) -> str:
        """The next answer."""
        stdout = _pipe(self.process.stdout)
        assert select.select([stdout], [], [], _ANSWER_DEADLINE_S)[0], "the fake guest doesn't answer"
        return stdout.readline().decode().strip()

    def minor_faults(self) -> int:
        """Page faults of the process so far."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            return int(stat.read().rpartition(")")[2].split()[7])

    def kill(self) -> None:
        """End the process at once; idempotent."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()


@contextlib.contextmanager
def fake_ram_writer(memory: GuestMemory, layout: str = "whole") -> Iterator[FakeRamWriter]:
    """A fake guest for the length of a `with` block."""
    writer = FakeRamWriter(memory, layout)
    try:
        yield writer
    finally:
        writer.kill()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


class _Guest:
    """The child's side."""

    def __init__(self, fd: int, ram_bytes: int, layout: str) -> None:
        self._pages = ram_bytes // PAGE_BYTES
        half = ram_bytes // 2
        if layout == "pieces":
            # The upper half first, so that address order is not page order (the kernel maps downwards).
            low, high = mmap.mmap(fd, half, offset=0), mmap.mmap(fd, half, offset=half)
            self._parts = [memoryview(low), memoryview(high)]
        else:
            self._parts = [
                memoryview(mmap.mmap(fd, ram_bytes)) for _ in range(2 if layout == "twice" else 1)
            ][-1:]
        self._storm_over = threading.Event()
        self._storm: list[threading.Thread] = []
        self._stormed = [0] * 64
        self._alarms = 0
        self._libc = ctypes.CDLL(None, use_errno=True)

    def serve(self) -> None:
        _say("up")
        for line in sys.stdin:
            name, *words = line.split()
            command: Callable[..., str] = getattr(self, f"do_{name}")
            _say(command(*words))

    def do_write(self, first: str, count: str, value: str) -> str:
        page = bytes([int(value)]) * PAGE_BYTES
        for number in range(int(first), int(first) + int(count)):
            part, at = self._locate(number)
            part[at : at + PAGE_BYTES] = page
        return "done"

    def do_stamp(self, value: str, *pages: str) -> str:
        for number in pages:
            part, at = self._locate(int(number))
            part[at] = int(value)
        return "done"

    def do_read(self, first: str, count: str) -> str:
        total = 0
        for number in range(int(first), int(first) + int(count)):
            part, at = self._locate(number)
            total += part[at]
        return "done"

    def do_storm(self, threads: str) -> str:
        self._storm_over.clear()
        self._storm = [threading.Thread(target=self._rage, args=(number,)) for number in range(int(threads))]
        for thread in self._storm:
            thread.start()
        return "done"

    def do_calm(self) -> str:
        self._storm_over.set()
        for thread in self._storm:
            thread.join()
        return str(sum(self._stormed))

    def do_sleep(self, seconds: str) -> str:
        """Raw nanosleep, ppoll and read: Python's own would retry an EINTR and hide it."""
        span = (ctypes.c_long * 2)(int(float(seconds)), int(float(seconds) % 1 * 1e9))
        return self._raw(lambda: self._libc.nanosleep(span, None), seconds)

    def do_ppoll(self, seconds: str) -> str:
        span = (ctypes.c_long * 2)(int(float(seconds)), int(float(seconds) % 1 * 1e9))
        return self._raw(lambda: self._libc.ppoll(None, 0, span, None), seconds)

    def do_receive(self) -> str:
        """Raw read(2) of exactly the next five bytes on stdin, which the parent sends late."""
        buffer = ctypes.create_string_buffer(5)
        _say("blocking")
        got = self._libc.read(0, buffer, 5)
        return f"{got} {buffer.raw.decode()!r}"

    def do_compute(self, seconds: str) -> str:
        """Integer and floating-point work with a known result, over and over; timer signals arrive all the time."""
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        expected, rounds, wrong, end = _work(), 0, 0, time.monotonic() + float(seconds)
        _say("blocking")
        while time.monotonic() < end:
            wrong += _work() != expected
            rounds += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        return f"wrong={wrong} worked={rounds > 0} alarms={self._alarms > 0}"

    def _raw(self, call: Callable[[], int], seconds: str) -> str:
        _say("blocking")
        begin = time.monotonic()
        answer = call()
        full = time.monotonic() - begin >= float(seconds)
        return f"{answer} errno={ctypes.get_errno() if answer else 0} slept_in_full={full}"

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._alarms += 1

    def _rage(self, number: int) -> None:
        dice = random.Random(number)
        while not self._storm_over.is_set():
            for _ in range(64):
                part, at = self._locate(dice.randrange(self._pages))
                spot = at + dice.randrange(PAGE_BYTES - 8)
                part[spot : spot + 8] = dice.randbytes(8)
                self._stormed[number] += 1

    def _locate(self, page: int) -> tuple[memoryview, int]:
        per_part = self._pages // len(self._parts)
        return self._parts[page // per_part], page % per_part * PAGE_BYTES


def _work() -> tuple[bytes, float]:
    digest, total = b"", 1.0
    for number in range(300):
        digest = hashlib.sha256(digest).digest()
        total = total * 1.000001 + number / 7.0
    return digest, total


def _say(answer: str) -> None:
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _Guest(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).serve()

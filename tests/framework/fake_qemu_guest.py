"""The guest inside the fake QEMU: one thread that plays vCPU, firmware, kernel, memory stamper and heartbeat.

It writes and checks real shared memory. Page n of the working set carries a stamp of (n, generation) at its head, its
middle and its tail; which generation a page must have follows from two numbers, the pass and the place in it, which
travel in the device state and never in guest RAM. So a page that is stale, torn, lost or of another place is found.

    guest RAM   | firmware, 1 MiB: constant, its checksum is device state | working set: stamped at a rate |
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

PAGE_BYTES = 4096
MIB = 1 << 20
_FIRMWARE_BYTES = MIB
_STAMP = struct.Struct("<QQ")
_STAMP_MAGIC = 0x5354414D50 << 24
_STAMP_OFFSETS = (0, PAGE_BYTES // 2, PAGE_BYTES - _STAMP.size)
# One turn of the vCPU: a stop has to wait for at most this many pages.
_PAGES_PER_TURN = 512
_STAMP_PERIOD_S = 0.005
_STATUS_PERIOD_NS = 1_000_000_000
_WRONG_LINES_MAX = 32


@dataclass(frozen=True)
class StamperOptions:
    """What the real guest takes on its kernel command line, by the same names."""

    stamper_mib: int = 64
    rate_mib_s: float = 20
    heartbeat_ms: int = 10
    order: str = "seq"

    @classmethod
    def from_kernel_command_line(cls, text: str) -> StamperOptions:
        """Options that the fake does not know are the kernel's affair."""
        words = dict(word.split("=", 1) for word in text.split() if "=" in word)
        rate = words.get("stamper.rate_mib_s", "20")
        return cls(
            stamper_mib=int(words.get("stamper.mib", "64")),
            rate_mib_s=4096 if rate == "max" else float(rate),
            heartbeat_ms=int(words.get("heartbeat_ms", "10")),
            order=words.get("stamper.order", "seq"),
        )


@dataclass
class GuestState:
    """All of the guest that is not RAM: the device state of the fake."""

    is_booted: bool = False
    passes: int = 0
    cursor: int = 0
    heartbeat: int = 0  # the number of the next one
    checked: int = 0
    stamped: int = 0
    wrong: int = 0
    clock_ns: int = 0
    firmware_checksum: int = 0


class FakeGuest:
    """Owns the mapping of guest RAM and the vCPU thread. `stop` and `cont` may be called from any other thread."""

    def __init__(
        self,
        memory_fd: int,
        ram_bytes: int,
        options: StamperOptions | None,
        write_console: Callable[[str], None],
        write_heartbeat: Callable[[str], None],
    ) -> None:
        # None: no kernel, so only the firmware runs.
        self._options = options
        self._memory = mmap.mmap(memory_fd, ram_bytes, flags=mmap.MAP_SHARED)
        self._write_console = write_console
        self._write_heartbeat = write_heartbeat
        self.state = GuestState()
        working_bytes = min(options.stamper_mib * MIB, ram_bytes - _FIRMWARE_BYTES) if options else 0
        self._page_count = working_bytes // PAGE_BYTES
        self._stride = _stride(self._page_count, options.order if options else "seq")
        self._inverse_stride = pow(self._stride, -1, self._page_count) if self._page_count > 1 else 0
        self._to_verify = range(0)
        self._turn = threading.Condition()
        self._is_running = False
        self._is_parked = True
        self._wants_reset = True
        self._clock_base_ns = 0
        self._owed_pages = 0.0
        self._stamped_before = 0
        self._next_stamp_ns = self._next_heartbeat_ns = self._next_status_ns = 0
        threading.Thread(target=self._run, name="CPU 0/FAKE", daemon=True).start()

    # ---- orders from the monitor

    def cont(self) -> bool:
        """Lets the vCPU run; whether it was stopped."""
        with self._turn:
            was_stopped = not self._is_running
            if was_stopped:
                self._clock_base_ns = time.monotonic_ns() - self.state.clock_ns
                self._is_running, self._is_parked = True, False
                self._turn.notify_all()
            return was_stopped

    def stop(self) -> bool:
        """Stops the vCPU; returns when it touches memory no more. Whether it ran."""
        with self._turn:
            was_running = self._is_running
            if was_running:
                self._is_running = False
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._is_parked)
                self.state.clock_ns = time.monotonic_ns() - self._clock_base_ns
            return was_running

    def reset(self) -> None:
        """The reset button: boots anew, at once or when it is let run."""
        with self._turn:
            self._wants_reset = True
            self._turn.notify_all()

    def install(self, state: GuestState) -> None:
        """Takes over another's device state, the vCPU being stopped.

        :raises ValueError: guest RAM does not fit the state: it has not arrived.
        """
        if state.is_booted and self._firmware_checksum() != state.firmware_checksum:
            raise ValueError("the firmware in guest RAM is not the one that the device state belongs to")
        self.state = state
        self._wants_reset = not state.is_booted
        self._to_verify = range(self._page_count if state.is_booted else 0)
        self._schedule(state.clock_ns)

    # ---- the vCPU

    def _run(self) -> None:
        while True:
            with self._turn:
                if not self._is_running:
                    self._is_parked = True
                    self._turn.notify_all()
                    self._turn.wait_for(lambda: self._is_running)
                if self._wants_reset:
                    self._wants_reset = False
                    self._boot()
            idle_s = self._work()
            if idle_s > 0:
                with self._turn:
                    self._turn.wait_for(lambda: not self._is_running or self._wants_reset, idle_s)

    def _clock_ns(self) -> int:
        return time.monotonic_ns() - self._clock_base_ns

    def _boot(self) -> None:
        self.state = GuestState(is_booted=True, clock_ns=self.state.clock_ns, wrong=self.state.wrong)
        pattern = bytes(range(1, 256)) + b"\x5a"
        self._memory[:_FIRMWARE_BYTES] = pattern * (_FIRMWARE_BYTES // len(pattern))
        self.state.firmware_checksum = self._firmware_checksum()
        for page in range(self._page_count):
            self._write_stamp(page, 0)
        self._to_verify = range(0)
        self._schedule(self._clock_ns())
        if self._options is not None:
            self._write_console("GUEST READY\n")

    def _schedule(self, clock_ns: int) -> None:
        self._next_stamp_ns = self._next_heartbeat_ns = clock_ns
        self._next_status_ns = clock_ns + _STATUS_PERIOD_NS
        self._stamped_before = self.state.stamped
        self._owed_pages = 0.0

    def _work(self) -> float:
        """One turn; returns for how long there is nothing to do, in seconds."""
        if self._options is None:
            return 3600.0
        now_ns = self._clock_ns()
        if now_ns >= self._next_heartbeat_ns:
            self._beat(now_ns, self._options.heartbeat_ms)
        if self._to_verify:
            self._verify_some()
        if now_ns >= self._next_stamp_ns:
            self._owed_pages += self._options.rate_mib_s * MIB / PAGE_BYTES * _STAMP_PERIOD_S
            self._next_stamp_ns = max(self._next_stamp_ns + int(_STAMP_PERIOD_S * 1e9), now_ns)
        self._stamp_some()
        if now_ns >= self._next_status_ns:
            self._next_status_ns = now_ns + _STATUS_PERIOD_NS
            self._write_status()
        if self._to_verify or self._owed_pages >= 1:
            return 0.0
        return (min(self._next_stamp_ns, self._next_heartbeat_ns) - self._clock_ns()) / 1e9

    def _write_status(self) -> None:
        state = self.state
        rate_mib_s = (state.stamped - self._stamped_before) * PAGE_BYTES / MIB
        self._stamped_before = state.stamped
        self._write_console(
            f"STAMP ok passes={state.passes} pages={self._page_count} checked={state.checked} "
            f"wrong={state.wrong} rate_mib_s={rate_mib_s:.1f}\n"
        )

    def _beat(self, now_ns: int, period_ms: int) -> None:
        self._write_heartbeat(f"HB {self.state.heartbeat} {now_ns // 1_000_000} {self.state.wrong}\n")
        self.state.heartbeat += 1
        self._next_heartbeat_ns = max(self._next_heartbeat_ns + period_ms * 1_000_000, now_ns)

    def _stamp_some(self) -> None:
        count = min(int(self._owed_pages), _PAGES_PER_TURN) if self._page_count else 0
        state = self.state
        for _ in range(count):
            page = state.cursor * self._stride % self._page_count
            self._check_stamp(page)
            self._write_stamp(page, state.passes + 1)
            state.cursor += 1
            state.stamped += 1
            if state.cursor == self._page_count:
                state.cursor, state.passes = 0, state.passes + 1
        # A vCPU that was kept off its processor does not catch up for ever.
        self._owed_pages = min(self._owed_pages - count, 8 * _PAGES_PER_TURN)

    def _verify_some(self) -> None:
        now, self._to_verify = self._to_verify[:_PAGES_PER_TURN], self._to_verify[_PAGES_PER_TURN:]
        for page in now:
            self._check_stamp(page)

    # ---- stamps

    def _generation(self, page: int) -> int:
        place = page * self._inverse_stride % self._page_count
        return self.state.passes + (place < self.state.cursor)

    def _check_stamp(self, page: int) -> None:
        self.state.checked += 1
        expected = _STAMP.pack(_STAMP_MAGIC | page, self._generation(page))
        base = _FIRMWARE_BYTES + page * PAGE_BYTES
        memory = self._memory
        for at in _STAMP_OFFSETS:
            found = memory[base + at : base + at + _STAMP.size]
            if found != expected:
                self._report_wrong(page, at // 8, expected, found)
                self._write_stamp(page, self._generation(page))
                return

    def _write_stamp(self, page: int, generation: int) -> None:
        stamp = _STAMP.pack(_STAMP_MAGIC | page, generation)
        base = _FIRMWARE_BYTES + page * PAGE_BYTES
        for at in _STAMP_OFFSETS:
            self._memory[base + at : base + at + _STAMP.size] = stamp

    def _report_wrong(self, page: int, word: int, expected: bytes, found: bytes) -> None:
        self.state.wrong += 1
        if self.state.wrong > _WRONG_LINES_MAX:
            return
        numbers = [_STAMP.unpack(stamp) for stamp in (expected, found)]
        place, (tag, generation) = (0 if numbers[0][0] != numbers[1][0] else 1), numbers[1]
        holds = "zero" if not any(found) else "foreign"
        if tag & ~0xFFFFFF == _STAMP_MAGIC:
            holds = f"page:{tag & 0xFFFFFF},generation:{generation}"
        line = (
            f"STAMP WRONG page={page} word={word + place} expected={numbers[0][place]:016x} "
            f"found={numbers[1][place]:016x} generation={self._generation(page)} wrong_words=1 holds={holds}\n"
        )
        self._write_console(line)
        self._write_heartbeat(line)

    def _firmware_checksum(self) -> int:
        return zlib.crc32(self._memory[:_FIRMWARE_BYTES])


def _stride(page_count: int, order: str) -> int:
    """Steps of this width visit every page once; about the golden section for an order that jumps."""
    if order == "seq" or page_count < 8:
        return 1
    stride = int(page_count * 0.618) | 1
    while math.gcd(stride, page_count) != 1:
        stride += 2
    return stride % page_count


def open_memory(path: str, ram_bytes: int) -> int:
    """Opens what `mem-path` names, as QEMU does; grows an empty file.

    :raises OSError: it can't be opened.
    """
    memory_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if os.fstat(memory_fd).st_size == 0:
        os.ftruncate(memory_fd, ram_bytes)
    return memory_fd

"""Watches a guest's heartbeat from outside, and measures how long the guest was silent while it moved.

The guest's own clock stops with it, so the true pause is seen only by somebody else: a process of its own follows the
heartbeat's file on the datastore and notes when each line arrived, on the machine's monotonic clock. It is a process
and not a thread, so that nothing that the demonstration draws meanwhile delays a time stamp.

    python -m demo.heartbeat_observer FILE      prints "watching", then "<nanoseconds> <line>";
                                                ends when its input is closed
"""

import asyncio
import os
import select
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.inotify import FileWatch

_LOOK_S = 0.2  # how late it may notice that its input is closed
_READ_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Beat:
    """One line of the heartbeat; `at_ns` is when it was seen (CLOCK_MONOTONIC)."""

    at_ns: int
    line: str


class HeartbeatObserver:
    """The beats seen so far."""

    def __init__(self) -> None:
        self.beats: list[Beat] = []
        self._ready = asyncio.Event()

    async def ready(self, timeout_s: float = 10.0) -> None:
        """Waits until what is written from now on is seen. :raises TimeoutError: it isn't."""
        await asyncio.wait_for(self._ready.wait(), timeout_s)

    @asynccontextmanager
    async def watching(self, path: Path, project: Path) -> AsyncIterator["HeartbeatObserver"]:
        """Observes `path` while the body runs; all that was seen is in `beats` after it.

        :raises RuntimeError: the observing process failed.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo.heartbeat_observer",
            str(path),
            cwd=project,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_LINE_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reader = asyncio.create_task(self._collect(process.stdout))
        try:
            yield self
        finally:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
            await reader
        if process.returncode != 0:
            raise RuntimeError(f"the observer of {path} ended with status {process.returncode}")

    async def _collect(self, lines: asyncio.StreamReader) -> None:
        async for raw in lines:
            if not self._ready.is_set():
                self._ready.set()  # its first line says that it watches
                continue
            at_ns, _, line = raw.decode("utf-8", "replace").rstrip("\n").partition(" ")
            self.beats.append(Beat(int(at_ns), line))


def silences_ms(beats: Sequence[Beat], begin_ns: int, end_ns: int, period_ms: float) -> list[float]:
    """How long the guest was silent beyond its period, between consecutive beats of the time from begin to end.

    The last beat before `begin_ns` and the first after `end_ns` count as neighbours.
    """
    times = [beat.at_ns for beat in beats]
    inside = [index for index, at_ns in enumerate(times) if begin_ns <= at_ns <= end_ns]
    if not inside:
        return []
    first, last = max(inside[0] - 1, 0), min(inside[-1] + 1, len(times) - 1)
    return [(times[i + 1] - times[i]) / 1e6 - period_ms for i in range(first, last)]


def guest_gap_ms(beats: Sequence[Beat], begin_ns: int, end_ns: int, period_ms: float) -> float | None:
    """The longest silence of that time, never below 0; None: no beat was seen in it."""
    silences = silences_ms(beats, begin_ns, end_ns, period_ms)
    return round(max(0.0, *silences), 2) if silences else None


def follow(path: Path) -> None:
    """Prints each whole line with the time at which it was seen, from the file's present end on."""
    watch = FileWatch(path)
    with open(path, "rb", buffering=0) as file:
        file.seek(0, os.SEEK_END)
        pending, aligned = b"", file.tell() == 0
        print("watching", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            watch.wait(_LOOK_S)
            data = file.read(_READ_BYTES)
            at_ns = time.monotonic_ns()
            while data:
                pending += data
                *lines, pending = pending.split(b"\n")
                for line in lines if aligned else lines[1:]:  # the first one may have been cut by our seek
                    sys.stdout.buffer.write(b"%d %s\n" % (at_ns, line))
                aligned = aligned or bool(lines)
                data = file.read(_READ_BYTES)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    follow(Path(sys.argv[1]))

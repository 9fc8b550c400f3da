"""Watches a guest's heartbeat from outside, and measures how long the guest was silent while it moved.

The guest's own clock stops with it, so the true pause is seen only by somebody else: a process of its own follows the
heartbeat's file on the datastore and notes when each line arrived, on the machine's monotonic clock. It is a process
and not a thread, so that nothing that the demonstration draws meanwhile delays a time stamp.

    python -m demo.heartbeat_observer FILE [FILE ...]      prints "watching", then "<nanoseconds> <line>";
                                                           ends when its input is closed

A VM whose home moves writes on in another file: the later FILEs are those, in the order in which it comes to them, and
needn't be there yet. A line that the move has torn is put together again.
"""

import asyncio
import os
import select
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from demo.inotify import FileWatch

_LOOK_S = 0.2  # how late it may notice that its input is closed
_MISSING_LOOK_S = (
    0.005  # ... and that the next file is there: its folder isn't either, so nothing tells of it
)
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
        self._came = asyncio.Event()

    async def ready(self, timeout_s: float = 10.0) -> None:
        """Waits until what is written from now on is seen. :raises TimeoutError: it isn't."""
        await asyncio.wait_for(self._ready.wait(), timeout_s)

    async def wait_for(self, wanted: Callable[[str], bool], timeout_s: float) -> str:
        """The first line from now on that is wanted. :raises TimeoutError: none came."""
        seen = len(self.beats)
        async with asyncio.timeout(timeout_s):
            while True:
                for beat in self.beats[seen:]:
                    if wanted(beat.line):
                        return beat.line
                seen = len(self.beats)
                self._came.clear()
                await self._came.wait()

    @asynccontextmanager
    async def watching(self, project: Path, *paths: Path) -> AsyncIterator["HeartbeatObserver"]:
        """Observes the files while the body runs, of which the first must be there; then all is in `beats`.

        :raises RuntimeError: the observing process failed.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo.heartbeat_observer",
            *map(str, paths),
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
            raise RuntimeError(f"the observer of {paths[0]} ended with status {process.returncode}")

    async def _collect(self, lines: asyncio.StreamReader) -> None:
        async for raw in lines:
            if not self._ready.is_set():
                self._ready.set()  # its first line says that it watches
                continue
            at_ns, _, line = raw.decode("utf-8", "replace").rstrip("\n").partition(" ")
            self.beats.append(Beat(int(at_ns), line))
            self._came.set()


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


class _Follower:
    """Reads the files' lines, one file after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._later = list(paths[1:])
        self._watch = FileWatch(paths[0])
        self._file = _opened(paths[0])
        self._next: FileIO | None = None
        self._pending = b""
        # The first line may be cut by our seek.
        self._aligned = self._file.seek(0, os.SEEK_END) == 0

    def step(self) -> None:
        """Waits for something new, not for long, and prints it."""
        missing = bool(self._later) and self._next is None
        self._watch.wait(_MISSING_LOOK_S if missing else _LOOK_S)
        if missing:
            self._find_next()
        self._take(self._file)
        if self._next is not None:
            head = self._next.read(_READ_BYTES)
            if head:
                self._take(self._file)  # whatever came between: from now on nothing comes there
                self._go_on(self._next, head)
        sys.stdout.buffer.flush()

    def _find_next(self) -> None:
        with suppress(FileNotFoundError):
            self._next = _opened(self._later[0])
            self._watch.add(self._later[0])

    def _go_on(self, file: FileIO, head: bytes) -> None:
        self._file.close()
        self._file, self._next = file, None
        self._later.pop(0)
        self._feed(head)
        self._take(file)

    def _take(self, file: FileIO) -> None:
        while data := file.read(_READ_BYTES):
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        at_ns = time.monotonic_ns()
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines if self._aligned else lines[1:]:
            sys.stdout.buffer.write(b"%d %s\n" % (at_ns, line))
        self._aligned = self._aligned or bool(lines)


def _opened(path: Path) -> FileIO:
    """Unbuffered: read to its end again and again, and closed by who has it."""
    return FileIO(path)


def follow(paths: Sequence[Path]) -> None:
    """Prints each whole line with the time at which it was seen, from the first file's present end on."""
    follower = _Follower(paths)
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        follower.step()


if __name__ == "__main__":
    follow([Path(argument) for argument in sys.argv[1:]])

"""`qemu-img` as a child process, less urgent than guests, killed as soon as nobody wants its answer.

It is started by `subprocess` in a thread, not by the event loop: that one forks, and gRPC's fork handlers may crash the
child before it has become the program; `subprocess` uses vfork(2), which runs none.
"""

import asyncio
import contextlib
import os
import subprocess
import tempfile
import threading
from pathlib import Path

from hostd.datastore.interruptible import interruptible
from hostd.datastore.new_file import Interrupted
from runtime.faults import InvalidDiskFormat, NotSupported, TimedOut

_NICENESS = "10"
_ANSWER_MAX_BYTES = 4 << 20
_WORDS_MAX_BYTES = 64 << 10


class QemuImg:
    """The program, or None: this host has none."""

    def __init__(self, binary: Path | None) -> None:
        self._binary = binary

    async def run(
        self,
        arguments: tuple[str, ...],
        descriptors: tuple[int, ...],
        shown: str,
        timeout_s: float | None = None,
    ) -> bytes:
        """What it answers. It finds `descriptors` open under their numbers; `shown` names the image in faults.

        Canceled: it has ended before this returns.

        :raises InvalidDiskFormat: it failed; the message has its last words. :raises TimedOut: it was killed.
        :raises NotSupported: there is none.
        """
        if self._binary is None:
            raise NotSupported("This host has no qemu-img: images can't be imported.", feature="qemu-img")
        command = ("nice", "-n", _NICENESS, str(self._binary), *arguments)
        child = _Child(command, descriptors)
        try:
            async with asyncio.timeout(timeout_s):
                status, answer, words = await interruptible(child.run, child.kill)
        except TimeoutError as error:
            message = f"qemu-img {arguments[0]} of {shown} took longer than {timeout_s} s."
            raise TimedOut(
                message, operation=f"qemu-img {arguments[0]}", timeout_s=timeout_s or 0.0
            ) from error
        if status != 0:
            message = f"qemu-img {arguments[0]} failed with status {status}: {_last_line(words)}"
            raise InvalidDiskFormat(message, path=shown)
        return answer


class _Child:
    """One run of a command; `kill` may come from another thread at any time."""

    def __init__(self, command: tuple[str, ...], descriptors: tuple[int, ...]) -> None:
        self._command = command
        self._descriptors = descriptors
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, stop: threading.Event) -> tuple[int, bytes, bytes]:
        """Status, what it wrote, what it complained of; blocks. :raises Interrupted: `stop` was set."""
        with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
            with self._lock:
                if stop.is_set():
                    raise Interrupted
                process = self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=answer,
                    stderr=words,
                    pass_fds=self._descriptors,
                    env={"LC_ALL": "C", "PATH": os.defpath},
                )
            status = process.wait()
            if stop.is_set():
                raise Interrupted
            answer.seek(0)
            words.seek(0)
            return status, answer.read(_ANSWER_MAX_BYTES), words.read(_WORDS_MAX_BYTES)

    def kill(self) -> None:
        """End it, if it runs."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                self._process.kill()


def _last_line(words: bytes) -> str:
    lines = words.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    return "".join(character for character in last if character.isprintable())[:300]

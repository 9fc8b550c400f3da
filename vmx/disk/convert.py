"""Makes a qcow2 image of a disk that no guest uses, by qemu-img as a child process.

qcow2's own layout is QEMU's business; raw targets are written by the bulk copy instead. The source is named by its
node options, so that nothing in its name, and no backing file that it names, has a meaning.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Final

from vmx.disk.bulk import BulkProgress
from vmx.disk.child import Child
from vmx.disk.contract import DiskLayout
from vmx.disk.errors import DiskConvertFailed, NbdClosed
from vmx.threads import in_thread, to_the_end

__all__ = ["ImageConversion"]

_PERCENT: Final = re.compile(rb"\(([0-9]{1,3}\.[0-9]{2})/100%\)")


class ImageConversion:
    """One run of qemu-img; `progress` counts the disk's whole capacity as data."""

    def __init__(self, source: DiskLayout, source_path: Path, target_path: Path) -> None:
        """The target may exist: its contents are replaced."""
        self._source = source
        self._source_path = source_path
        self._target_path = target_path
        self._done = 0.0
        self._began_ns = 0
        self._ended_ns = 0

    @property
    def progress(self) -> BulkProgress:
        """How far it is."""
        duration_ns = (self._ended_ns or time.monotonic_ns()) - self._began_ns if self._began_ns else 0
        capacity_bytes = self._source.capacity_bytes
        return BulkProgress(capacity_bytes, int(capacity_bytes * self._done), 0, duration_ns / 1e6)

    async def run(self) -> None:
        """Converts, and makes the result durable. When it is cancelled, the child is ended first.

        :raises DiskConvertFailed: qemu-img said no, or the target can't be made durable.
        """
        self._began_ns = time.monotonic_ns()
        child = Child(self._command())
        try:
            await in_thread(child.start)
            status = await in_thread(self._follow, child, on_cancel=child.kill)
            complaint = await in_thread(child.complaint)
        except NbdClosed as error:
            raise self._failed(str(error)) from error
        finally:
            await to_the_end(in_thread(child.end))
        if status != 0:
            raise self._failed(complaint or f"it ended with {status}")
        try:
            await in_thread(_make_durable, self._target_path)
        except OSError as error:
            raise self._failed(str(error)) from error
        self._ended_ns = time.monotonic_ns()

    def _command(self) -> list[str]:
        file = {"driver": "file", "filename": str(self._source_path)}
        node: dict[str, object] = {"driver": "raw", "file": file}
        if not self._source.format.is_raw:
            node = {"driver": "qcow2", "file": file, "backing": None}
        return [
            "qemu-img",
            "convert",
            "-p",
            "-O",
            "qcow2",
            f"json:{json.dumps(node)}",
            str(self._target_path),
        ]

    def _follow(self, child: Child) -> int:
        while text := child.read():
            for percent in _PERCENT.findall(text):
                self._done = float(percent) / 100
        return child.wait()

    def _failed(self, reason: str) -> DiskConvertFailed:
        return DiskConvertFailed(str(self._source_path), str(self._target_path), reason)


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

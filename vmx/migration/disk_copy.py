"""The disks of one migration at its source: mirrored while the guest runs, copied in bulk, handed over after its stop.

    copy     for each disk: mirror on (where a guest runs), then the bulk copy      the mirror stays on
    finish   the guest is stopped: mirrors end, everything is flushed at the target
    cancel   mirrors off; the guest goes on with the disks that it has

A mirror that fails ends the migration and not the guest: `on_failure` hears of it, until the finish.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from runtime.faults import MigrationFault, NoDiskSpace, VimFault
from vmx.disk.bulk import BulkCopy, BulkProgress
from vmx.disk.contract import DiskFormat, DiskLayout, DiskSink
from vmx.disk.errors import DiskError, DiskFull, MirrorFailed, NbdClosed
from vmx.disk.export import image_export, node_exports, open_source
from vmx.disk.mirror import DiskMirror
from vmx.disk.nodes import node_of_disk
from vmx.guest.errors import GuestDied, QmpFailure
from vmx.guest.process import GuestProcess
from vmx.guest.qmp import QmpConnection
from vmx.migration.progress import DiskReport, ProgressBoard
from vmx.stream import (
    ControlCode,
    ControlMessage,
    DiskFaultCode,
    RemoteDiskFailed,
    SourceStreams,
    StreamError,
)
from vmx.stream.errors import ConnectionLost
from vmx.stream.frames import decode_failed_value
from vmx.threads import in_thread
from vmx.trace.errors import TargetGoneError

_REPORT_EVERY_S = 0.1
# It is said before the connection is ended, on another one.
_DESTINATIONS_WORD_S = 0.5

OnMirrorFailure = Callable[[MirrorFailed], Awaitable[None]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SourceDisk:
    """A disk that moves, as the source has it."""

    key: int
    extent_path: Path
    format: DiskFormat
    capacity_bytes: int

    @property
    def layout(self) -> DiskLayout:
        """As vmx/disk takes it."""
        return DiskLayout(self.key, self.capacity_bytes, self.format)


@dataclass(frozen=True)
class MirrorTools:
    """What mirroring a running guest needs; there is none for a VM that is off."""

    qmp: QmpConnection


@dataclass(frozen=True)
class Traffic:
    """What went to the target, of all disks together, beside what the copies themselves count."""

    wire_bytes: int = 0
    mirrored_bytes: int = 0


class DiskCopies:
    """The copies of all moved disks, one after another; once."""

    def __init__(
        self,
        disks: Sequence[SourceDisk],
        sinks: Mapping[int, DiskSink],
        board: ProgressBoard,
        run_dir: Path,
        mirror_tools: MirrorTools | None,
        traffic: Callable[[], Traffic] = Traffic,
    ) -> None:
        self._disks = disks
        self._sinks = sinks
        self._board = board
        self._run_dir = run_dir
        self._tools = mirror_tools
        self._traffic = traffic
        self._mirrors: dict[int, DiskMirror] = {}
        self._running: BulkCopy | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def copy(self, on_failure: OnMirrorFailure) -> None:
        """Everything that the disks hold is at the target, and what the guest writes from now on is too.

        :raises DiskError: the source can't be read, or the target took no more.
        """
        self._publish({disk.key: BulkProgress(0, 0, 0, 0.0) for disk in self._disks})
        if self._tools is not None:
            await self._copy_under_guest(self._tools, on_failure)
            return
        for disk in self._disks:
            if disk.format.is_raw:
                await self._copy_one(disk, "", None)
            else:
                name = f"disk-{disk.key}"
                async with image_export(disk.extent_path, name, self._run_dir) as exports:
                    await self._copy_one(disk, name, exports)

    async def _copy_under_guest(self, tools: MirrorTools, on_failure: OnMirrorFailure) -> None:
        nodes = {disk.key: await node_of_disk(tools.qmp, disk.key) for disk in self._disks}
        for disk in self._disks:
            await self._mirror(disk, nodes[disk.key], tools, on_failure)
        images = [nodes[disk.key] for disk in self._disks if not disk.format.is_raw]
        async with node_exports(tools.qmp, images, self._run_dir) as exports:
            for disk in self._disks:
                await self._copy_one(disk, nodes[disk.key], exports)

    async def finish_after_stop(self) -> None:
        """The guest is stopped: every write of it is at the target when this returns.

        :raises DiskError: a mirror had failed.
        """
        self._end_watches()
        for mirror in self._mirrors.values():
            await mirror.finish_after_stop()

    async def cancel(self) -> None:
        """Nothing is left of the copies at the source. Idempotent; what can't be undone is logged."""
        self._end_watches()
        if self._running is not None:
            self._running.cancel()
        for mirror in self._mirrors.values():
            try:
                await mirror.cancel()
            except (DiskError, QmpFailure) as error:
                _log.error("disk_mirror_not_cancelled", reason=str(error))

    async def _mirror(
        self, disk: SourceDisk, node: str, tools: MirrorTools, on_failure: OnMirrorFailure
    ) -> None:
        mirror = DiskMirror(tools.qmp, disk.layout, node, self._run_dir, self._sinks[disk.key])
        self._mirrors[disk.key] = mirror
        await mirror.start()
        self._watches.append(asyncio.create_task(self._watch(mirror, on_failure), name=f"mirror-{disk.key}"))

    async def _watch(self, mirror: DiskMirror, on_failure: OnMirrorFailure) -> None:
        error = await mirror.wait_failed()
        _log.error("disk_mirror_failed", reason=str(error))
        await on_failure(error)

    async def _copy_one(self, disk: SourceDisk, node: str, exports: Path | None) -> None:
        with await in_thread(open_source, disk.layout, disk.extent_path, node, exports) as source:
            self._running = copy = BulkCopy(source, self._sinks[disk.key])
            reporting = asyncio.create_task(self._report(disk.key, copy), name="disk-progress")
            try:
                done = await in_thread(copy.run, on_cancel=copy.cancel)
            finally:
                reporting.cancel()
                await asyncio.wait([reporting])
        self._publish({disk.key: done})
        _log.info(
            "disk_copied",
            disk=disk.key,
            data_bytes=done.data_bytes,
            zero_bytes=done.zero_bytes,
            duration_ms=round(done.duration_ms, 1),
        )

    async def _report(self, key: int, copy: BulkCopy) -> None:
        while True:
            # A copy has no events that are worth one: people look several times a second.
            await asyncio.sleep(_REPORT_EVERY_S)
            self._publish({key: copy.progress})

    def _publish(self, news: Mapping[int, BulkProgress]) -> None:
        now = self._board.now
        reports = {report.key: report for report in now.disks}
        traffic = self._traffic()
        for disk in self._disks:
            report = reports.get(disk.key, DiskReport(disk.key, disk.capacity_bytes))
            if disk.key in news:
                made = news[disk.key]
                report = replace(
                    report,
                    data_bytes=made.data_bytes,
                    copied_bytes=made.copied_bytes,
                    zero_bytes=made.zero_bytes,
                    duration_ms=made.duration_ms,
                )
            reports[disk.key] = report
        if self._disks:  # the stream counts all disks together: told with the first
            first = self._disks[0].key
            reports[first] = replace(
                reports[first], wire_bytes=traffic.wire_bytes, mirrored_bytes=traffic.mirrored_bytes
            )
        self._board.publish(replace(now, disks=tuple(reports[disk.key] for disk in self._disks)))

    def _end_watches(self) -> None:
        for watch in self._watches:
            watch.cancel()


async def guest_death_behind(error: BaseException, process: GuestProcess) -> GuestDied | None:
    """A guest that dies may be missed first by what copies its disks, whose connections it closes, or its memory."""
    cause = error.cause if isinstance(error, MirrorFailed) else error
    if not isinstance(cause, NbdClosed | TargetGoneError) and process.qmp.is_connected:
        return None
    return await process.death_within()


async def told_by_destination(streams: SourceStreams, error: BaseException) -> BaseException:
    """What is behind a disk's error: where the destination's disk failed it ends the connection, and its own word, with
    the reason, comes on the control channel."""
    if isinstance(streams.failure, RemoteDiskFailed):
        return streams.failure
    if not isinstance(error, DiskError | ConnectionLost):
        return error
    try:
        received = await streams.control.receive(_DESTINATIONS_WORD_S)
    except StreamError:
        return error
    if isinstance(received, ControlMessage) and received.code is ControlCode.FAILED:
        disk = decode_failed_value(received.value)
        if disk is not None:
            return RemoteDiskFailed(*disk, received.text)
    return error


def disk_fault(error: BaseException, phase: str) -> VimFault:
    """What failed in moving a disk's data, as a fault."""
    fault: VimFault
    if isinstance(error, MirrorFailed) and error.cause is not None:
        error = error.cause
    if isinstance(error, RemoteDiskFailed) and error.code is DiskFaultCode.NO_SPACE:
        fault = NoDiskSpace(f"The datastore that the disk moves to is full: {error}.")
    elif isinstance(error, DiskFull):
        message = f"The datastore that the disk moves to is full: {error}."
        fault = NoDiskSpace(message, requested_bytes=error.needed_bytes)
    else:
        fault = MigrationFault(f"A disk couldn't be copied: {error}.", phase=phase)
    fault.__cause__ = error
    return fault

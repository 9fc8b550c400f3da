"""Moves disks of one VM between two places that this host sees, with or without a running guest.

    prepare   mirrors on -> bulk copies -> targets durable -> QEMU mirrors into the targets by itself
    ready     sources and targets are equal, and stay so with every write of the guest; `cancel` leads back
    commit    the guest's disks stand on the targets; the sources are closed, and not needed any more

Without a guest there is nothing to mirror, and `commit` has nothing to do. The targets' files exist and are empty; what
becomes of the sources and targets afterwards is their maker's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from vmx.disk.bulk import BulkCopy, BulkOptions, BulkProgress
from vmx.disk.contract import DiskLayout
from vmx.disk.convert import ImageConversion
from vmx.disk.errors import DiskSpecError, MirrorError, MirrorFailed, PartlyPivoted
from vmx.disk.export import image_export, node_exports, open_source
from vmx.disk.extent import ExtentWriter
from vmx.disk.mirror import DiskMirror
from vmx.disk.nodes import node_of_disk
from vmx.guest.errors import QmpFailure
from vmx.guest.qmp import QmpConnection
from vmx.threads import in_thread, to_the_end

__all__ = ["DiskMove", "DiskMoveProgress", "LocalMove"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class DiskMove:
    """One disk: what it is and where, what it becomes and where. The target's file exists.

    :raises DiskSpecError: source and target are not the same disk.
    """

    source: DiskLayout
    source_path: Path
    target: DiskLayout
    target_path: Path

    def __post_init__(self) -> None:
        if self.source.key != self.target.key:
            raise DiskSpecError("key", f"{self.source.key} is to become {self.target.key}")
        if self.source.capacity_bytes != self.target.capacity_bytes:
            raise DiskSpecError("capacity_bytes", "a disk's size can't change while it moves")


@dataclass(frozen=True)
class DiskMoveProgress:
    """How far the move of one disk is; see BulkProgress. `mirrored_bytes` are the guest's own writes meanwhile."""

    key: int
    capacity_bytes: int
    data_bytes: int
    copied_bytes: int
    zero_bytes: int
    mirrored_bytes: int
    duration_ms: float


@dataclass
class _Part:
    """What there is of one disk's move by now."""

    move: DiskMove
    copy: BulkCopy | ImageConversion | None = None
    writer: ExtentWriter | None = None
    mirror: DiskMirror | None = None
    node_name: str = ""


class LocalMove:
    """One move of some disks of one VM. For one task at a time; `progress` at any time."""

    def __init__(
        self,
        moves: Sequence[DiskMove],
        run_dir: Path,
        qmp: QmpConnection | None,
        options: BulkOptions | None = None,
    ) -> None:
        """`qmp` is the running guest's, None without one. `run_dir` is for sockets, and nobody else's to enter.

        :raises DiskSpecError: a disk of a running guest can't become qcow2.
        """
        if qmp is not None and not all(move.target.format.is_raw for move in moves):
            raise DiskSpecError("format", "a disk of a running guest can only become a raw one")
        self._parts = [_Part(move) for move in moves]
        self._run_dir = run_dir
        self._qmp = qmp
        self._options = options

    @property
    def progress(self) -> tuple[DiskMoveProgress, ...]:
        """How far each disk is, in the order of the moves."""
        return tuple(_progress_of(part) for part in self._parts)

    async def prepare(self) -> None:
        """Copies everything; at the return source and target are equal and stay so. Once.

        :raises DiskError: it failed; the guest goes on with the sources, nothing but the targets' files is left.
        :raises QmpFailure: QEMU is gone, or didn't answer.
        """
        try:
            await self._open()
            if self._qmp is None:
                for part in self._parts:
                    await self._copy_without_guest(part)
            else:
                await self._copy_under_guest(self._qmp)
        except BaseException:
            await self.cancel()
            raise

    async def wait_failed(self) -> MirrorFailed:
        """Waits until the mirror of any disk has failed: what was prepared is of no use then. Else never returns."""
        waiting = [asyncio.ensure_future(part.mirror.wait_failed()) for part in self._parts if part.mirror]
        try:
            if not waiting:
                await asyncio.get_running_loop().create_future()
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for waiter in waiting:
                waiter.cancel()

    async def commit(self) -> dict[int, str]:
        """Moves the guest onto the targets, without a stop; the disks' new nodes by key, nothing without a guest.

        All disks are tried, even after a failure: the owner then has to say of each where it is.

        :raises PartlyPivoted: some disks stayed (or could not be closed at the source).
        """
        return await to_the_end(self._commit())

    async def cancel(self) -> None:
        """Undoes what `prepare` did: the guest is on the sources; the targets' files stay, of no use. Idempotent."""
        await to_the_end(self._cancel())

    async def _open(self) -> None:
        for part in self._parts:
            if part.move.target.format.is_raw:
                part.writer = await in_thread(ExtentWriter, part.move.target_path, part.move.target)

    async def _copy_under_guest(self, qmp: QmpConnection) -> None:
        for part in self._parts:
            assert part.writer is not None, "opened"
            part.node_name = await node_of_disk(qmp, part.move.source.key)
            part.mirror = DiskMirror(qmp, part.move.source, part.node_name, self._run_dir, part.writer)
            await part.mirror.start()
        images = [part.node_name for part in self._parts if not part.move.source.format.is_raw]
        async with node_exports(qmp, images, self._run_dir) as exports:
            for part in self._parts:
                await self._unless_mirror_fails(self._copy(part, exports))
        for part in self._parts:
            assert part.mirror is not None, "started"
            await part.mirror.land_on(part.move.target, part.move.target_path)

    async def _copy_without_guest(self, part: _Part) -> None:
        move = part.move
        if not move.target.format.is_raw:
            part.copy = ImageConversion(move.source, move.source_path, move.target_path)
            await part.copy.run()
        elif move.source.format.is_raw:
            await self._copy(part, None)
        else:
            part.node_name = f"disk-{move.source.key}"
            async with image_export(move.source_path, part.node_name, self._run_dir) as exports:
                await self._copy(part, exports)

    async def _copy(self, part: _Part, exports: Path | None) -> None:
        """The bulk copy of one disk into its writer, durable at the return."""
        source, writer = part.move.source, part.writer
        assert writer is not None, "opened"
        with await in_thread(
            open_source, part.move.source, part.move.source_path, part.node_name, exports
        ) as opened:
            copy = part.copy = BulkCopy(opened, writer, self._options)
            progress = await in_thread(copy.run, on_cancel=copy.cancel)
        writer.bulk_finished()
        await in_thread(writer.flush)
        _log.info(
            "disk_bulk_copied",
            disk_key=source.key,
            data_bytes=progress.data_bytes,
            zero_bytes=progress.zero_bytes,
            duration_ms=round(progress.duration_ms, 1),
        )

    async def _unless_mirror_fails(self, work: Awaitable[None]) -> None:
        working = asyncio.ensure_future(work)
        failing = asyncio.ensure_future(self.wait_failed())
        try:
            await asyncio.wait((working, failing), return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                raise failing.result()
            working.result()
        finally:
            for task in (working, failing):
                task.cancel()
            await to_the_end(asyncio.wait((working, failing)))

    async def _commit(self) -> dict[int, str]:
        pivoted: dict[int, str] = {}
        failures: dict[int, MirrorError] = {}
        for part in self._parts:
            if part.mirror is None:
                continue
            try:
                pivoted[part.move.source.key] = await part.mirror.pivot()
            except MirrorError as error:
                failures[part.move.source.key] = error
        await self._cancel()
        if failures:
            raise PartlyPivoted(pivoted, failures)
        return pivoted

    async def _cancel(self) -> None:
        # The stack goes on with the next after an error, and raises it in the end.
        async with AsyncExitStack() as stack:
            for part in self._parts:
                if part.writer is not None:
                    stack.callback(part.writer.close)
            for part in self._parts:
                if part.mirror is not None:
                    stack.push_async_callback(_cancel_mirror, part.mirror)


async def _cancel_mirror(mirror: DiskMirror) -> None:
    try:
        await mirror.cancel()
    except QmpFailure as error:
        # The guest goes on, with a mirror that goes nowhere: its next write ends it.
        _log.warning("disk_mirror_left", reason=str(error))


def _progress_of(part: _Part) -> DiskMoveProgress:
    bulk = part.copy.progress if part.copy is not None else BulkProgress(0, 0, 0, 0.0)
    return DiskMoveProgress(
        key=part.move.source.key,
        capacity_bytes=part.move.source.capacity_bytes,
        data_bytes=bulk.data_bytes,
        copied_bytes=bulk.copied_bytes,
        zero_bytes=bulk.zero_bytes,
        mirrored_bytes=part.mirror.mirrored_bytes if part.mirror is not None else 0,
        duration_ms=bulk.duration_ms,
    )

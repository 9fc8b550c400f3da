"""QEMU's mirror of one disk: from its start on, every write of the guest is in the sink when the guest hears of it.

    new --start--> running --finish_after_stop--> finished      between hosts: the guest is stopped, nothing was lost
                     |  +-----land_on--> landed --pivot--> pivoted     on one host: the guest goes on, on the target
                     +---- cancel, also from landed --> cancelled      the guest goes on, on the source
                     +---- the target fails ---------> failed          the same; `failed` is set

The job is `blockdev-mirror` with sync=none (QEMU copies nothing by itself) and copy-mode=write-blocking (a write is
done when both sides have it). Its filter node sits above the source; its target is a raw node over an NBD node over a
socket of this process. Checked with QEMU 7.2: the job is ready as soon as it runs; a write of a single sector arrives
as that sector, before it is acknowledged; a discard is dropped on both sides alike by the filter, so that the sides
stay equal (the space comes free at the guest's next trim).

Landing: while the job goes on, the target's raw node is reopened (blockdev-reopen) over the real file instead of the
NBD node. QEMU drains the node for it, so no write is under way. From then on QEMU writes to the file by itself, and
only then the job completes and the guest's device stands on the target. The other order works too, but between its two
steps this process would be the guest's only disk: if it died then, the guest would lose its disk. This way the guest
never depends on it, and landing can be taken back.

When this process dies, the NBD connection breaks, the next mirrored write fails, the job ends by itself and the guest
goes on with its source disk; `nodes.clear_leftovers` is for the process that adopts the guest.
"""

from __future__ import annotations

import asyncio
import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from vmx.disk.contract import DiskLayout, DiskSink
from vmx.disk.errors import DiskError, MirrorFailed, MirrorMisused, MirrorStartFailed, PivotFailed
from vmx.disk.mirror_job import MirrorJob
from vmx.disk.nbd_server import NbdExport, NbdServer
from vmx.disk.nodes import delete_node, next_generation
from vmx.guest.disk_devices import discard_mode, file_node
from vmx.guest.errors import QmpConnectionLost, QmpFailure
from vmx.guest.qmp import QmpConnection
from vmx.threads import in_thread, to_the_end

__all__ = ["DiskMirror", "MirrorState"]

_STEP_DEADLINE_S: Final = 30.0
# A sink that hangs (a peer that is silent) is its owner's to end: the guest's disk doesn't wait for it.
_SINK_RETURNS_S: Final = 5.0

_log = structlog.get_logger(__name__)


class MirrorState(StrEnum):
    """See the picture in the module's docstring."""

    NEW = "new"
    RUNNING = "running"
    LANDED = "landed"
    FINISHED = "finished"
    PIVOTED = "pivoted"
    CANCELLED = "cancelled"
    FAILED = "failed"


class DiskMirror:
    """The mirror of one disk of a running guest. For one task at a time, but for `failed` and the counters.

    After every error but that of `start`, `cancel` clears up.
    """

    def __init__(
        self, qmp: QmpConnection, layout: DiskLayout, node_name: str, run_dir: Path, sink: DiskSink
    ) -> None:
        """`layout` is the source's; `node_name` the node that the guest's disk stands on; the sink isn't owned."""
        self._qmp = qmp
        self._layout = layout
        self._node_name = node_name
        # Short: run_dir may be as long as a socket's address allows for "console.sock".
        self._socket_path = run_dir / f"m{layout.key}.sock"
        self._sink = sink
        self._state = MirrorState.NEW
        self._generation = 0
        self._server: NbdServer | None = None
        self._job: MirrorJob | None = None
        self.failed = asyncio.Event()
        self.failure: MirrorFailed | None = None

    @property
    def state(self) -> MirrorState:
        """Where the mirror is."""
        return self._state

    @property
    def mirrored_bytes(self) -> int:
        """How much the guest has written or zeroed since the start; what comes after landing isn't counted."""
        return self._server.mirrored_bytes if self._server is not None else 0

    async def start(self) -> None:
        """Starts mirroring; every write that the guest begins after the return is in the sink when it is done.

        :raises MirrorStartFailed: nothing has changed.
        """
        self._expect("start", MirrorState.NEW)
        try:
            await self._start()
        except BaseException as error:
            self._state = MirrorState.CANCELLED
            await to_the_end(self._clear())
            if isinstance(error, QmpFailure | DiskError | OSError):
                raise MirrorStartFailed(self._node_name, str(error)) from error
            raise
        self._state = MirrorState.RUNNING
        _log.info("disk_mirror_started", disk_key=self._layout.key, node=self._node_name)

    async def wait_failed(self) -> MirrorFailed:
        """Waits until the mirror has failed, and tells why."""
        await self.failed.wait()
        assert self.failure is not None, "set before the event"
        return self.failure

    async def finish_after_stop(self) -> None:
        """Ends the mirror of a guest that is stopped: all that it has ever written is durable in the sink.

        The guest's disk is the source again, without a mirror.

        :raises MirrorFailed: the mirror has failed, or the sink couldn't be flushed: its data is not complete.
        """
        self._expect("finish", MirrorState.RUNNING)
        await to_the_end(self._finish())

    async def land_on(self, target: DiskLayout, path: Path) -> None:
        """From now on QEMU itself mirrors into `path`, which the sink has written; the bulk copy must be done.

        The guest still stands on the source, and `cancel` still leads back to it.

        :raises MirrorFailed: the file can't be opened by QEMU, or the mirror has failed.
        """
        self._expect("land", MirrorState.RUNNING)
        await to_the_end(self._land(target, path))

    async def pivot(self) -> str:
        """Moves the guest onto the file landed on, without a stop; its new node's name. The old file is closed.

        :raises PivotFailed: `pivoted` says which of both the guest uses now.
        """
        self._expect("pivot", MirrorState.LANDED)
        return await to_the_end(self._pivot())

    async def pivot_to(self, target: DiskLayout, path: Path) -> str:
        """`land_on` and `pivot` in one."""
        await self.land_on(target, path)
        return await self.pivot()

    async def cancel(self) -> None:
        """Ends the mirror: the guest is on its source; no node, job or socket is left. Idempotent.

        Nothing happens after `finish_after_stop` or `pivot`. A QEMU that has died is no error: nothing is left then.

        :raises QmpFailure: QEMU lives but did not do it.
        """
        if self._state in (MirrorState.FINISHED, MirrorState.PIVOTED):
            return
        if self._state is not MirrorState.FAILED:
            self._state = MirrorState.CANCELLED
        await to_the_end(self._clear())

    @property
    def _target_node(self) -> str:
        return f"disk-{self._layout.key}-{self._generation}"

    def _expect(self, asked: str, state: MirrorState) -> None:
        if self.failure is not None:
            raise self.failure
        if self._state is not state:
            raise MirrorMisused(self._node_name, self._state, asked)

    async def _start(self) -> None:
        key = self._layout.key
        self._generation = await next_generation(self._qmp, key)
        self._server = await asyncio.to_thread(self._listen, asyncio.get_running_loop())
        self._server.start()
        discard = discard_mode(self._layout.format)
        nbd = {
            "driver": "nbd",
            "export": self._target_node,
            "server": {"type": "unix", "path": str(self._socket_path)},
            "discard": discard,
        }
        node = {"driver": "raw", "node-name": self._target_node, "discard": discard, "file": nbd}
        await self._qmp.execute("blockdev-add", node, deadline_s=_STEP_DEADLINE_S)
        self._job = MirrorJob(self._qmp, f"mirror-{key}-{self._generation}", self._fail)
        await self._job.start(self._node_name, self._target_node)
        # Its one client is connected, nobody else is to come.
        await asyncio.to_thread(self._socket_path.unlink, missing_ok=True)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> NbdServer:
        self._socket_path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._socket_path))
            os.chmod(self._socket_path, 0o600)
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
        export = NbdExport(self._target_node, self._layout.capacity_bytes)

        def on_end(error: DiskError | None) -> None:
            if error is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._fail, str(error), error)

        return NbdServer(listener, export, self._sink, on_end)

    def _fail(self, reason: str, cause: DiskError | None = None) -> None:
        if self._state in (MirrorState.RUNNING, MirrorState.LANDED):
            self._state = MirrorState.FAILED
            self.failure = MirrorFailed(self._node_name, reason, cause)
            self.failed.set()
            _log.warning("disk_mirror_failed", disk_key=self._layout.key, reason=reason)

    async def _finish(self) -> None:
        assert self._job is not None, "running"
        try:
            reason = await self._job.finish()
        except QmpFailure as error:
            raise self._failed_by(str(error)) from error
        if reason is not None or self.failure is not None:
            raise self._failed_by(reason or "the target has failed")
        try:
            await in_thread(self._sink.flush)
        except DiskError as error:
            raise self._failed_by(str(error), error) from error
        self._state = MirrorState.FINISHED
        await self._clear()
        _log.info("disk_mirror_finished", disk_key=self._layout.key, mirrored_bytes=self.mirrored_bytes)

    async def _land(self, target: DiskLayout, path: Path) -> None:
        file_name = f"file-{target.key}-{self._generation}"
        reopened = {
            "driver": "raw",
            "node-name": self._target_node,
            "discard": discard_mode(target.format),
            "file": file_name,
        }
        try:
            node = file_node(file_name, path, target.format)
            await self._qmp.execute("blockdev-add", node, deadline_s=_STEP_DEADLINE_S)
            await self._qmp.execute("blockdev-reopen", {"options": [reopened]}, deadline_s=_STEP_DEADLINE_S)
        except QmpFailure as error:
            raise self._failed_by(str(error)) from error
        if self.failure is not None:
            # A write failed just before: the file lacks it.
            raise self.failure
        self._state = MirrorState.LANDED

    async def _pivot(self) -> str:
        assert self._job is not None, "landed"
        try:
            reason = await self._job.complete()
        except QmpFailure as error:
            self._failed_by(str(error))
            raise PivotFailed(self._node_name, str(error), pivoted=False) from error
        if reason is not None:
            self._failed_by(reason)
            raise PivotFailed(self._node_name, reason, pivoted=False)
        self._state = MirrorState.PIVOTED
        try:
            await delete_node(self._qmp, self._node_name)
        except QmpFailure as error:
            raise PivotFailed(self._node_name, str(error), pivoted=True) from error
        await self._clear()
        _log.info("disk_pivoted", disk_key=self._layout.key, node=self._target_node)
        return self._target_node

    def _failed_by(self, reason: str, cause: DiskError | None = None) -> MirrorFailed:
        self._fail(reason, cause)
        return self.failure or MirrorFailed(self._node_name, reason, cause)

    async def _clear(self) -> None:
        """Job, nodes, server, socket: whatever there is of them."""
        if self._server is not None:
            # First: a sink that hangs would keep the guest's writes waiting, and with them the job's end.
            self._server.close()
        try:
            await self._clear_qemu()
        except QmpConnectionLost:
            _log.info("disk_mirror_gone_with_qemu", disk_key=self._layout.key)
        finally:
            if self._server is not None and not await asyncio.to_thread(self._server.join, _SINK_RETURNS_S):
                _log.warning("disk_sink_hangs", disk_key=self._layout.key)
            await asyncio.to_thread(self._socket_path.unlink, missing_ok=True)

    async def _clear_qemu(self) -> None:
        if self._job is not None:
            await self._job.abort()
            if self._job.has_completed and self._state is not MirrorState.PIVOTED:
                # It completed when it was thought to have failed: the guest is on the target after all.
                self._state = MirrorState.PIVOTED
                await delete_node(self._qmp, self._node_name)
        if self._generation and self._state is not MirrorState.PIVOTED:
            await delete_node(self._qmp, self._target_node)

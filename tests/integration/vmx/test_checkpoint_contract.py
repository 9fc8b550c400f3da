"""The checkpoint's contract, kept by QEMU and by the fake one: a guest goes on in another process, or where it was."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from images.guest_output import parse_wrong
from tests.framework.guest_processes import (
    GuestProcesses,
    console_text,
    heartbeat_after,
    heartbeats,
)
from vmx.checkpoint.capture import CapturedState, CaptureLimits, CaptureState, CheckpointCapture
from vmx.checkpoint.errors import (
    CheckpointStateError,
    RamInState,
    RestoreFailed,
    StateTooLarge,
)
from vmx.checkpoint.restore import CheckpointRestore
from vmx.guest.errors import (
    GuestDied,
    QmpConnectionLost,
)
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import RunControl, RunState


def copy_runs(source: GuestMemory, destination: GuestMemory, runs: PageRuns) -> None:
    """Stands in for the page channels."""
    with source.mapped(writable=False) as old, destination.mapped() as new:
        for first, count in runs.tolist():
            span = slice(first * PAGE_BYTES, (first + count) * PAGE_BYTES)
            new.view[span] = old.view[span]


async def migrate(processes: GuestProcesses, source: GuestProcess) -> tuple[GuestProcess, CapturedState]:
    """A migration in its simplest order: everything is copied while the guest is stunned."""
    destination = await processes.start(
        replace(processes.spec(incoming=True), ram_bytes=source.spec.ram_bytes)
    )
    incoming = destination.spec.run_dir / "in.sock"
    outgoing = source.spec.run_dir / "out.sock"
    async with CheckpointRestore(destination.qmp, incoming) as restore:
        async with CheckpointCapture(source.qmp, outgoing) as capture:
            await capture.stop_guest()
            captured = await capture.save()
        runs = source.memory.populated_runs()
        await asyncio.to_thread(copy_runs, source.memory, destination.memory, runs)
        await restore.feed(captured.device_state)
        await restore.loaded()
        assert await RunControl(destination.qmp).state() is RunState.PAUSED
        await restore.resume()
    return destination, captured


# ---- checkpoint


async def test_checkpoint_restored_in_second_process_guest_goes_on(linux: GuestProcesses) -> None:
    guest = await linux.start_running()
    for _ in range(2):
        old, (guest, captured) = guest, await migrate(linux, guest)
        assert 0 < captured.ram_transferred_bytes < 4 << 20
        assert captured.save_ms > 0
        await heartbeat_after(guest, -1)
        first, last = heartbeats(guest)[0], heartbeats(old)[-1]
        assert first.sequence in (last.sequence, last.sequence + 1), "it went on, it did not boot again"
        await old.kill()
        # 64 MiB/s of sweep over a working set of 16 MiB: within a second every page has been looked at.
        later = await heartbeat_after(guest, first.sequence + 100)
        assert later.wrong == 0
    assert "GUEST READY" not in console_text(guest)
    assert "STAMP WRONG" not in console_text(guest)


@pytest.mark.parametrize("moment", ["prepared", "stopped", "saved"])
async def test_capture_cancelled_guest_runs_on_and_a_second_one_succeeds(
    linux: GuestProcesses, moment: str
) -> None:
    guest = await linux.start_running()
    beat = heartbeats(guest)[-1].sequence
    for _ in range(2):
        async with CheckpointCapture(guest.qmp, guest.spec.run_dir / "out.sock") as capture:
            if moment != "prepared":
                await capture.stop_guest()
            if moment == "saved":
                await capture.save()
                assert await RunControl(guest.qmp).state() is RunState.POSTMIGRATE
            await capture.cancel()
            await capture.cancel()
            assert capture.state is CaptureState.CANCELLED
            assert await RunControl(guest.qmp).state() is RunState.RUNNING
        beat = (await heartbeat_after(guest, beat)).sequence
    moved, _ = await migrate(linux, guest)
    later = await heartbeat_after(moved, beat + 100)
    assert later.wrong == 0


async def test_capture_task_cancelled_anywhere_guest_can_run_on(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    for delay_ms in (0, 1, 2, 4, 8):
        async with CheckpointCapture(guest.qmp, guest.spec.run_dir / "out.sock") as capture:
            attempt = asyncio.create_task(_stop_and_save(capture))
            await asyncio.wait([attempt], timeout=delay_ms / 1000)
            attempt.cancel()
            await asyncio.wait([attempt])
            await capture.cancel()
        assert await RunControl(guest.qmp).state() is RunState.RUNNING
    await migrate(firmware, guest)


async def _stop_and_save(capture: CheckpointCapture) -> None:
    await capture.stop_guest()
    await capture.save()


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (CaptureLimits(state_bytes=1000), StateTooLarge),
        (CaptureLimits(ram_transferred_bytes=1), RamInState),
    ],
)
async def test_capture_over_its_limits_fails_and_guest_runs_on(
    firmware: GuestProcesses, limits: CaptureLimits, error: type[Exception]
) -> None:
    guest = await firmware.start_running()
    async with CheckpointCapture(guest.qmp, guest.spec.run_dir / "out.sock", limits) as capture:
        with pytest.raises(error):
            await _stop_and_save(capture)
        assert capture.state is CaptureState.FAILED
        await capture.cancel()
    assert await RunControl(guest.qmp).state() is RunState.RUNNING
    await migrate(firmware, guest)


async def test_capture_calls_in_wrong_order_are_refused(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    async with CheckpointCapture(guest.qmp, guest.spec.run_dir / "out.sock") as capture:
        with pytest.raises(CheckpointStateError):
            await capture.save()
        await capture.stop_guest()
        with pytest.raises(CheckpointStateError):
            await capture.stop_guest()
        await capture.cancel()
        with pytest.raises(CheckpointStateError):
            await capture.save()


async def test_capture_of_paused_guest_keeps_it_paused(linux: GuestProcesses) -> None:
    guest = await linux.start_running()
    await RunControl(guest.qmp).stop()
    async with CheckpointCapture(guest.qmp, guest.spec.run_dir / "out.sock") as capture:
        stop = await capture.stop_guest()
        assert stop.stop_ms == 0
        captured = await capture.save()
        await capture.cancel()
    assert await RunControl(guest.qmp).state() is not RunState.RUNNING
    assert captured.device_state


async def test_capture_of_dying_guest_tells_its_end(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    async with CheckpointCapture(guest.qmp, guest.spec.run_dir / "out.sock") as capture:
        await guest.kill()
        with pytest.raises(QmpConnectionLost) as lost:
            await capture.stop_guest()
        with pytest.raises(QmpConnectionLost):
            await guest.qmp.execute("query-status")
    assert isinstance(await guest.cause_of(lost.value), GuestDied)


async def test_restore_without_its_memory_fails_and_tells(firmware: GuestProcesses) -> None:
    source = await firmware.start_running()
    await asyncio.sleep(0.3)  # the firmware writes its tables
    destination = await firmware.start(firmware.spec(incoming=True))
    async with CheckpointRestore(destination.qmp, destination.spec.run_dir / "in.sock") as restore:
        async with CheckpointCapture(source.qmp, source.spec.run_dir / "out.sock") as capture:
            await capture.stop_guest()
            captured = await capture.save()
            await capture.cancel()
        with pytest.raises(CheckpointStateError):
            await restore.resume()
        with pytest.raises(RestoreFailed):
            await _feed_all(restore, captured.device_state)
        with pytest.raises(CheckpointStateError):
            await restore.resume()
    assert (await destination.wait_exit()).exit_code == 1
    assert await RunControl(source.qmp).state() is RunState.RUNNING


async def _feed_all(restore: CheckpointRestore, state: bytes) -> None:
    await restore.feed(state)  # QEMU may close the stream before it has read it all
    await restore.loaded()


async def test_restore_of_garbage_fails_and_tells(firmware: GuestProcesses) -> None:
    destination = await firmware.start(firmware.spec(incoming=True))
    async with CheckpointRestore(destination.qmp, destination.spec.run_dir / "in.sock") as restore:
        with pytest.raises(RestoreFailed):
            await _feed_all(restore, os.urandom(1 << 20))
    assert (await destination.wait_exit()).exit_code == 1


# ---- the fake itself


async def test_fake_guest_finds_lost_and_misplaced_pages(fakes: GuestProcesses) -> None:
    guest = await fakes.start_running()
    await RunControl(guest.qmp).stop()
    page = (1 << 20) + 1000 * PAGE_BYTES
    with guest.memory.mapped() as memory:
        memory.view[page : page + PAGE_BYTES] = memory.view[page + PAGE_BYTES : page + 2 * PAGE_BYTES]
        memory.view[page + 2 * PAGE_BYTES : page + 3 * PAGE_BYTES] = bytes(PAGE_BYTES)
    await RunControl(guest.qmp).cont()
    beat = heartbeats(guest)[-1]
    async with asyncio.timeout(10):
        while beat.wrong < 2:
            beat = await heartbeat_after(guest, beat.sequence)
    wrong = [found for line in console_text(guest).splitlines() if (found := parse_wrong(line))]
    assert {found.page for found in wrong} == {1000, 1002}

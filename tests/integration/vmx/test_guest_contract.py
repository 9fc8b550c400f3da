"""The contract between vmx and its guest's process, kept by QEMU and by the fake one.

What runs inside is the firmware alone, or the Linux guest of `images` where the test needs somebody who beats and
checks its memory (the fake plays both).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import structlog

from tests.framework.guest_processes import (
    REPOSITORY,
    GuestProcesses,
    heartbeat_after,
    heartbeats,
)
from vmx.guest.command_line import GuestSpec
from vmx.guest.errors import (
    GuestDied,
    GuestStartFailed,
    NotThisGuest,
    QmpConnectionLost,
    QmpError,
)
from vmx.guest.memory import GuestMemory
from vmx.guest.pages import PAGE_BYTES, PageRuns, page_total, split
from vmx.guest.process import GuestProcess
from vmx.guest.run_control import PowerState, RunControl, RunState
from vmx.trace.tracer import Tracer, TracerKind, TraceTarget, choose_tracer

F_OFD_SETLK = 37  # fcntl(2), <fcntl.h>; not in Python's fcntl


def ram_of(guest: GuestProcess) -> bytes:
    with guest.memory.mapped(writable=False) as memory:
        return bytes(memory.view)


# ---- life


async def test_guest_spawned_is_stopped_then_runs_then_quits(firmware: GuestProcesses) -> None:
    guest = await firmware.start()
    control = RunControl(guest.qmp)
    assert await control.state() is RunState.PRELAUNCH
    assert await control.state() != RunState.RUNNING
    assert guest.userfault_fd is not None
    assert ram_of(guest).count(0) == guest.spec.ram_bytes, "nothing runs before cont"

    assert await control.cont() is not None
    assert await control.state() is RunState.RUNNING
    assert (await control.state()).power_state is PowerState.POWERED_ON
    await control.reset()
    await control.quit()
    status = await guest.wait_exit()
    assert status.is_clean
    assert guest.exit_status == status


async def test_guest_stop_and_cont_repeated_say_nothing_new(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    control = RunControl(guest.qmp)
    assert await control.cont() is None
    stopped = await control.stop()
    assert stopped is not None
    assert stopped.name == "STOP"
    assert await control.stop() is None
    assert await control.state() is RunState.PAUSED
    assert await control.cont() is not None


async def test_guest_stopped_touches_no_memory_and_beats_no_more(linux: GuestProcesses) -> None:
    guest = await linux.start_running()
    control = RunControl(guest.qmp)
    await control.stop()
    before, beats = ram_of(guest), heartbeats(guest)
    await asyncio.sleep(0.2)  # time in which a guest that runs would beat twenty times
    assert ram_of(guest) == before
    assert heartbeats(guest) == beats
    await control.cont()
    await heartbeat_after(guest, beats[-1].sequence)


async def test_guest_name_with_commas_reaches_qemu_whole(firmware: GuestProcesses) -> None:
    guest = await firmware.start()
    assert (await guest.qmp.query("query-name"))["name"] == guest.spec.name
    assert (await guest.qmp.query("query-uuid"))["UUID"] == guest.spec.vm_uuid
    assert guest.spec.console_socket_path.is_socket()


async def test_qmp_refused_command_tells_class_and_reason(firmware: GuestProcesses) -> None:
    guest = await firmware.start()
    with pytest.raises(QmpError) as refused:
        await guest.qmp.execute("no-such-command")
    assert (refused.value.command, refused.value.error_class) == ("no-such-command", "CommandNotFound")
    with pytest.raises(QmpError) as unready:
        await guest.qmp.execute("migrate-incoming", {"uri": "unix:/nowhere"})
    assert unready.value.error_class == "GenericError"


# ---- start that fails


async def test_spawn_bad_machine_fails_with_qemus_words_and_leaves_memory_to_caller(
    firmware: GuestProcesses,
) -> None:
    spec = replace(firmware.spec(), machine_type="pc-q35-99.9")
    memory = GuestMemory.create("test-guest", spec.ram_bytes)
    with pytest.raises(GuestStartFailed) as failed:
        await GuestProcess.spawn(spec, memory, firmware.launch(spec))
    assert failed.value.exit_status is not None
    assert failed.value.exit_status.exit_code == 1
    assert any("unsupported machine type" in line for line in failed.value.log_tail)
    assert memory.fd >= 0
    memory.close()


async def test_spawn_missing_kernel_fails_with_qemus_words(firmware: GuestProcesses) -> None:
    spec = replace(firmware.spec(), kernel_path=Path("/no/such,kernel"))
    with pytest.raises(GuestStartFailed) as failed:
        await firmware.start(spec)
    assert any("/no/such,kernel" in line for line in failed.value.log_tail)


async def test_spawn_missing_program_fails(folder: Path) -> None:
    processes = GuestProcesses(folder / "no-such-qemu", folder, has_kernel=False)
    with pytest.raises(GuestStartFailed) as failed:
        await processes.start()
    assert failed.value.exit_status is None


async def test_spawn_silent_program_is_killed_at_deadline(folder: Path) -> None:
    silent = folder / "silent"
    silent.write_text("#!/bin/sh\necho $$ > " + str(folder / "pid") + "\nexec sleep 60\n")
    silent.chmod(0o700)
    processes = GuestProcesses(silent, folder, has_kernel=False)
    spec = processes.spec()
    memory = GuestMemory.create("test-guest", spec.ram_bytes)
    with pytest.raises(GuestStartFailed, match="no greeting"):
        await GuestProcess.spawn(spec, memory, replace(processes.launch(spec), start_deadline_s=0.5))
    memory.close()
    assert not Path(f"/proc/{(folder / 'pid').read_text().strip()}").exists()


# ---- death


async def test_guest_killed_is_noticed_by_all_who_wait(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    with guest.qmp.subscribe("NEVER") as events:
        waiting = asyncio.create_task(events.next(30))
        exiting = asyncio.create_task(guest.wait_exit())
        await asyncio.sleep(0)
        os.kill(guest.pid, signal.SIGKILL)
        assert (await exiting).signal_number == signal.SIGKILL
        with pytest.raises(QmpConnectionLost):
            await waiting
    with pytest.raises(QmpConnectionLost) as lost:
        await guest.qmp.execute("query-status")
    cause = await guest.cause_of(lost.value)
    assert isinstance(cause, GuestDied)
    assert cause.exit_status.signal_number == signal.SIGKILL
    assert await guest.kill() == cause.exit_status, "killing the dead changes nothing"


async def test_cause_of_failure_with_living_guest_is_the_failure(firmware: GuestProcesses) -> None:
    guest = await firmware.start()
    with pytest.raises(QmpError) as refused:
        await guest.qmp.execute("no-such-command")
    assert await guest.cause_of(refused.value) is refused.value


async def test_qmp_client_gone_next_one_is_served_and_guest_runs_on(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    first = guest.qmp
    second = await guest.reconnect_qmp()
    assert not first.is_connected
    assert await first.lost() == "closed"
    assert second is guest.qmp
    assert await RunControl(second).state() is RunState.RUNNING


# ---- what QEMU inherits


def _try_lock(path: Path) -> tuple[int, bool]:
    """A new open file of `path`, and whether it got the OFD write lock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, request)
    except BlockingIOError:
        return fd, False
    return fd, True


async def test_run_lock_inherited_is_held_until_the_process_ends(
    firmware: GuestProcesses, folder: Path
) -> None:
    path = folder / "run.lock"
    run_lock_fd, is_locked = _try_lock(path)
    assert is_locked
    guest = await firmware.start(run_lock_fd=run_lock_fd)
    os.close(run_lock_fd)

    other_fd, is_locked = _try_lock(path)
    os.close(other_fd)
    assert not is_locked, "QEMU holds it, though vmx has closed its copy"
    taken = guest.take_descriptor_of(path)
    os.close(taken)

    await guest.kill()
    other_fd, is_locked = _try_lock(path)
    os.close(other_fd)
    assert is_locked


async def test_spawn_gives_qemu_no_other_descriptor(firmware: GuestProcesses, folder: Path) -> None:
    stranger = os.open(folder / "stranger", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(stranger, True)
    guest = await firmware.start()
    os.close(stranger)
    links = [os.readlink(f"/proc/{guest.pid}/fd/{name}") for name in os.listdir(f"/proc/{guest.pid}/fd")]
    assert not any("stranger" in link for link in links)
    assert os.readlink(f"/proc/{guest.pid}/fd/0") == "/dev/null"
    assert not any(link.startswith("pipe:") for link in links), "a pipe breaks when vmx dies"
    assert os.getsid(guest.pid) == guest.pid


# ---- adoption

_VMX_THAT_DIES = """
import asyncio, json, os, sys
from dataclasses import replace
from pathlib import Path
from vmx.guest.command_line import Accelerator, GuestSpec
from vmx.guest.memory import GuestMemory
from vmx.guest.process import GuestProcess, Launch
from vmx.guest.run_control import RunControl

async def main(binary, fields):
    paths = {name: Path(fields[name]) for name in ("console_log_path", "heartbeat_log_path", "run_dir")}
    spec = GuestSpec(**{**fields, **paths, "accelerator": Accelerator(fields["accelerator"])})
    memory = GuestMemory.create("test-guest", spec.ram_bytes)
    lock = os.open(spec.run_dir / "run.lock", os.O_RDWR | os.O_CREAT)
    guest = await GuestProcess.spawn(spec, memory, Launch(Path(binary), spec.run_dir / "qemu.log", lock))
    await RunControl(guest.qmp).cont()
    print(guest.pid, flush=True)
    os._exit(9)

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


async def _guest_of_a_dead_vmx(processes: GuestProcesses) -> tuple[int, GuestSpec]:
    spec = processes.spec()
    fields = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(spec).items()
        if value is not None
    }
    command = [sys.executable, "-c", _VMX_THAT_DIES, str(processes.qemu_binary), json.dumps(fields)]
    vmx = await asyncio.to_thread(
        subprocess.run, command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False, text=True, timeout=60
    )
    assert vmx.returncode == 9
    return int(vmx.stdout.split()[-1]), spec


async def test_guest_of_dead_vmx_is_adopted_with_memory_tracing_and_lock(firmware: GuestProcesses) -> None:
    pid, spec = await _guest_of_a_dead_vmx(firmware)
    try:
        guest = await GuestProcess.adopt(pid, spec, spec.run_dir / "qemu.log")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    firmware.started.append(guest)
    assert await RunControl(guest.qmp).state() is RunState.RUNNING
    assert guest.memory.ram_bytes == spec.ram_bytes
    assert page_total(guest.memory.populated_runs()) > 0
    os.close(guest.take_descriptor_of(spec.run_dir / "run.lock"))

    target = TraceTarget(guest.pid, guest.memory, guest.userfault_fd)
    tracer = choose_tracer(target, TracerKind.PAGEMAP_SCAN, structlog.get_logger())
    await asyncio.to_thread(tracer.start)
    await asyncio.to_thread(tracer.stop)

    status = await guest.kill()
    assert (status.exit_code, status.signal_number) == (None, None), "only its parent is told"
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


async def test_adopt_other_vm_is_refused_and_unharmed(firmware: GuestProcesses) -> None:
    guest = await firmware.start_running()
    other = replace(guest.spec, vm_uuid="12345678-1234-1234-1234-123456789abc")
    with pytest.raises(NotThisGuest):
        await GuestProcess.adopt(guest.pid, other, guest.spec.run_dir / "qemu.log")
    larger = replace(guest.spec, ram_bytes=guest.spec.ram_bytes * 2)
    with pytest.raises(NotThisGuest):
        await GuestProcess.adopt(guest.pid, larger, guest.spec.run_dir / "qemu.log")
    with pytest.raises(NotThisGuest):
        await GuestProcess.adopt(os.getpid(), guest.spec, guest.spec.run_dir / "qemu.log")
    assert await RunControl(guest.qmp).state() is RunState.RUNNING


async def test_adopt_ended_process_is_refused(firmware: GuestProcesses) -> None:
    guest = await firmware.start()
    await guest.kill()
    with pytest.raises(NotThisGuest):
        await GuestProcess.adopt(guest.pid, guest.spec, guest.spec.run_dir / "qemu.log")


# ---- shared and traced memory


def send_traced(tracer: Tracer, source: GuestMemory, destination: GuestMemory, runs: PageRuns) -> None:
    """Stands in for the page channels, in the way the tracer asks for."""
    with source.mapped(writable=False) as old, destination.mapped() as new:
        for first, count in split(runs, 256).tolist():
            span = slice(first * PAGE_BYTES, (first + count) * PAGE_BYTES)
            copied = bytes(old.view[span])
            if tracer.sends_from_copy:
                tracer.record_sent(first, memoryview(copied))
            new.view[span] = copied


@pytest.mark.parametrize("tracer_kind", list(TracerKind))
async def test_memory_is_shared_and_every_write_is_traced(
    linux: GuestProcesses, tracer_kind: TracerKind
) -> None:
    guest = await linux.start_running()
    target = TraceTarget(guest.pid, guest.memory, guest.userfault_fd)
    tracer = choose_tracer(target, tracer_kind, structlog.get_logger())
    copy = GuestMemory.create("copy", guest.spec.ram_bytes)
    beat = heartbeats(guest)[-1].sequence
    for collect in (tracer.start, tracer.collect, tracer.collect):
        runs = await asyncio.to_thread(collect)
        assert page_total(runs) > 0
        await asyncio.to_thread(send_traced, tracer, guest.memory, copy, runs)
        beat = (await heartbeat_after(guest, beat)).sequence
    await RunControl(guest.qmp).stop()
    runs = await asyncio.to_thread(tracer.collect)
    await asyncio.to_thread(send_traced, tracer, guest.memory, copy, runs)
    assert page_total(await asyncio.to_thread(tracer.collect)) == 0, "a stopped guest writes nothing"
    await asyncio.to_thread(tracer.stop)
    with copy.mapped(writable=False) as copied:
        assert bytes(copied.view) == ram_of(guest)
    copy.close()

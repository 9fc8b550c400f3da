"""What a guest's NIC says by itself, seen on its socket: nothing before the guest runs, and who it is when it does."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.guest_processes import GuestProcesses, qemu_binary
from vmx.checkpoint.capture import CheckpointCapture
from vmx.checkpoint.restore import CheckpointRestore
from vmx.guest.nic_devices import NicDevice
from vmx.guest.run_control import RunControl

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(qemu_binary() is None, reason="there is no QEMU on this machine"),
]
MAC = "02:00:00:00:00:2a"
RARP = b"\x80\x35"
_QUIET_S = 0.4


class FakeSwitch:
    """The socket that QEMU sends to, without a switch behind it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def heard(self, within_s: float) -> list[tuple[str, bytes]]:
        """Which port sent what, until nothing comes for so long."""
        self.socket.settimeout(within_s)
        frames = []
        try:
            while True:
                frame, port = self.socket.recvfrom(2000)
                frames.append((Path(port).name, frame))
        except TimeoutError:
            return frames


async def test_destination_is_silent_until_it_runs_and_then_announces_itself(folder: Path) -> None:
    binary = qemu_binary()
    assert binary is not None
    processes, switch = GuestProcesses(binary, folder, False), FakeSwitch(folder / "switch.sock")
    try:
        here = NicDevice(4000, MAC, folder / "here.sock", switch.path)
        unplugged = NicDevice(4001, "02:00:00:00:00:2b")
        source = await processes.start(replace(processes.spec(), nics=(here, unplugged)))
        control = RunControl(source.qmp)
        await control.unplug(source.spec.nics)
        await control.cont()
        await control.announce(source.spec.nics)
        first = await asyncio.to_thread(switch.heard, 1.0)
        assert len(first) >= 3, "repeated, for those who have missed it"
        assert {(port, frame[6:12].hex(":"), frame[12:14]) for port, frame in first} == {
            ("here.sock", MAC, RARP)
        }

        there = replace(here, port_path=folder / "there.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
            stale.bind(str(there.port_path))  # as an earlier QEMU leaves it
        spec = processes.spec(incoming=True)
        destination = await processes.start(
            replace(spec, ram_bytes=source.spec.ram_bytes, nics=(there, unplugged))
        )
        async with CheckpointRestore(destination.qmp, destination.spec.run_dir / "in.sock") as restore:
            async with CheckpointCapture(source.qmp, source.spec.run_dir / "out.sock") as capture:
                await capture.stop_guest()
                captured = await capture.save()
            with source.memory.mapped(writable=False) as old, destination.memory.mapped() as new:
                new.view[:] = old.view[:]
            await restore.feed(captured.device_state)
            await restore.loaded()
            assert await asyncio.to_thread(switch.heard, _QUIET_S) == [], (
                "its state is loaded; it isn't ours yet"
            )
            await restore.resume()
        await RunControl(destination.qmp).announce(destination.spec.nics)
        after = await asyncio.to_thread(switch.heard, 1.0)
        assert len(after) >= 3
        assert {(port, frame[6:12].hex(":"), frame[12:14]) for port, frame in after} == {
            ("there.sock", MAC, RARP)
        }
    finally:
        switch.socket.close()
        await processes.end_all()


async def test_guest_sends_on_after_its_switch_was_away(folder: Path) -> None:
    binary = qemu_binary()
    assert binary is not None
    processes, switch = GuestProcesses(binary, folder, False), FakeSwitch(folder / "switch.sock")
    try:
        nic = NicDevice(4000, MAC, folder / "here.sock", switch.path)
        guest = await processes.start(replace(processes.spec(), nics=(nic,)))
        control = RunControl(guest.qmp)
        await control.cont()
        switch.socket.close()
        await control.announce(guest.spec.nics)
        switch.path.unlink()
        await control.announce(guest.spec.nics)
        switch = FakeSwitch(switch.path)
        await control.announce(guest.spec.nics)
        assert len(await asyncio.to_thread(switch.heard, 1.0)) >= 3
        assert guest.exit_status is None
    finally:
        switch.socket.close()
        await processes.end_all()

"""Guest processes for tests: QEMU or the fake one behind the same product code, and all of them gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from images.cmdline import kernel_command_line
from images.guest_output import Heartbeat, parse_heartbeat
from vmx.guest.command_line import Accelerator, GuestSpec
from vmx.guest.memory import GuestMemory
from vmx.guest.process import GuestProcess, Launch
from vmx.guest.run_control import RunControl

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_QEMU = Path(__file__).with_name("fake-qemu")
GUEST_KERNEL = REPOSITORY / "out" / "guest" / "vmlinuz"
GUEST_INITRD = REPOSITORY / "out" / "guest" / "initrd.img"
_BEAT_DEADLINE_S = 60.0


@dataclass
class GuestProcesses:
    """Starts guests of one kind in folders of their own; `end_all` ends whatever is left of them."""

    qemu_binary: Path
    folder: Path
    has_kernel: bool
    started: list[GuestProcess] = field(default_factory=list)
    _folders: int = 0

    def spec(self, *, incoming: bool = False, ram_mib: int = 128, rate_mib_s: int = 20) -> GuestSpec:
        """A specification in a folder of its own. Names and paths are as nasty as they may be."""
        self._folders += 1
        run_dir = self.folder / f"vm,{self._folders} x=y"
        run_dir.mkdir()
        spec = GuestSpec(
            vm_uuid=str(uuid.UUID(int=0x5EED)),
            name="a,b=c 'd' ,server=on",
            vcpus=1,
            ram_bytes=ram_mib << 20,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            accelerator=Accelerator.TCG,
            console_log_path=run_dir / "console.log",
            heartbeat_log_path=run_dir / "heartbeat.log",
            run_dir=run_dir,
            incoming=incoming,
        )
        if not self.has_kernel:
            return spec
        command_line = kernel_command_line(stamper_mib=16, rate=rate_mib_s, order="random", sweep_mib_s=64)
        # The fake only looks whether there is a kernel: it needs no image to be built.
        is_fake = self.qemu_binary == FAKE_QEMU
        kernel, initrd = (FAKE_QEMU, FAKE_QEMU) if is_fake else (GUEST_KERNEL, GUEST_INITRD)
        return replace(spec, kernel_path=kernel, initrd_path=initrd, kernel_command_line=command_line)

    def launch(self, spec: GuestSpec, run_lock_fd: int | None = None) -> Launch:
        """How this kind is started."""
        return Launch(self.qemu_binary, spec.run_dir / "qemu.log", run_lock_fd)

    async def start(self, spec: GuestSpec | None = None, run_lock_fd: int | None = None) -> GuestProcess:
        """Starts a guest, stopped."""
        spec = spec or self.spec()
        memory = GuestMemory.create("test-guest", spec.ram_bytes)
        try:
            guest = await GuestProcess.spawn(spec, memory, self.launch(spec, run_lock_fd))
        except BaseException:
            memory.close()
            raise
        self.started.append(guest)
        return guest

    async def start_running(self) -> GuestProcess:
        """Starts a guest and waits until it does what it is there for."""
        guest = await self.start()
        await RunControl(guest.qmp).cont()
        if self.has_kernel:
            await heartbeat_after(guest, 0)
        return guest

    async def end_all(self) -> None:
        """Ends every process that was started here."""
        for guest in self.started:
            with contextlib.suppress(asyncio.CancelledError):
                await guest.kill()
            await guest.close()


def qemu_binary() -> Path | None:
    """The real QEMU of this machine."""
    found = shutil.which("qemu-system-x86_64")
    return Path(found) if found else None


def heartbeats(guest: GuestProcess) -> list[Heartbeat]:
    """All whole heartbeat lines so far."""
    lines = guest.spec.heartbeat_log_path.read_text(errors="replace").replace("\r", "").split("\n")[:-1]
    return [beat for line in lines if (beat := parse_heartbeat(line)) is not None]


async def heartbeat_after(guest: GuestProcess, sequence: int) -> Heartbeat:
    """Waits for a heartbeat of a higher number than `sequence`."""
    # A file that another process appends to: there is no event to wait for.
    async with asyncio.timeout(_BEAT_DEADLINE_S):
        while not (beats := heartbeats(guest)) or beats[-1].sequence <= sequence:
            await asyncio.sleep(0.02)
    return beats[-1]


def console_text(guest: GuestProcess) -> str:
    """All that the guest has said on its console."""
    return guest.spec.console_log_path.read_text(errors="replace")

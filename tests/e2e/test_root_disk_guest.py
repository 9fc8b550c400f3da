"""The guest with a real root disk on a real QEMU: it boots from it, keeps what it was told is safe, tells what is lost.

The disk's own record of what was acknowledged is compared from both sides: by the guest after its next boot, and by the
host in the disk's bytes. Both are shown a damaged record as well: a witness that can't say "wrong" proves nothing.
"""

import asyncio
import ctypes
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from images.build import build_guest
from images.cmdline import kernel_command_line
from images.fsync_check import BLOCK_BYTES, check_area
from images.guest_output import (
    READY,
    FsyncBegin,
    FsyncState,
    parse_fsync_begin,
    parse_fsync_state,
    parse_fsync_wrong,
    parse_heartbeat,
)
from images.root_disk import DiskOptions, build_root_disk, copy_disk, set_command_line
from images.root_disk_settings import FsyncSettings, address_word, root_disk_command_line

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
    pytest.mark.skipif(shutil.which("syslinux") is None, reason="no syslinux here"),
]

OPTIONS = DiskOptions(filler_mib=8, check_mib=4)
STAMPER = kernel_command_line(4, 1, heartbeat_ms=20)
BOOT_DEADLINE_S = 60.0
WAIT_DEADLINE_S = 30.0
PR_SET_PDEATHSIG = 1
T = TypeVar("T")


@dataclass
class Port:
    """One serial port: the lines that it gives, and what is typed into it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lines: list[str] = field(default_factory=list)

    async def next(self, parse: Callable[[str], T | None], deadline_s: float = WAIT_DEADLINE_S) -> T:
        """The next line that the parser takes."""
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    line = (await self.reader.readline()).decode("ascii", "replace")
                    assert line, f"the port was closed after: {''.join(self.lines[-40:])}"
                    self.lines.append(line)
                    if (parsed := parse(line)) is not None:
                        return parsed
        except TimeoutError:
            pytest.fail(f"nothing of the kind in {deadline_s} s; the port gave: {''.join(self.lines[-40:])}")

    async def line_with(self, text: str, deadline_s: float = WAIT_DEADLINE_S) -> str:
        return await self.next(lambda line: line if text in line else None, deadline_s)


@dataclass(frozen=True)
class Guest:
    """One QEMU of a test."""

    process: asyncio.subprocess.Process
    console: Port
    heartbeat: Port

    async def kill(self) -> None:
        """As if its host had lost power; what QEMU gave to the host's kernel stays."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@asynccontextmanager
async def running(*more_arguments: str) -> AsyncIterator[Guest]:
    async with AsyncExitStack() as stack:
        ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        words = ["-accel", "tcg", "-machine", "pc-q35-7.2", "-m", "128", "-cpu", "qemu64", "-nodefaults"]
        for name, end in zip(("console", "heartbeat"), theirs, strict=True):
            words += ["-chardev", f"socket,id={name},fd={end.fileno()}", "-serial", f"chardev:{name}"]
        process = await asyncio.create_subprocess_exec(
            "qemu-system-x86_64",
            *words,
            *("-display", "none", "-no-reboot"),
            *more_arguments,
            pass_fds=[end.fileno() for end in theirs],
            preexec_fn=die_with_parent,
        )
        ports = []
        for mine, end in zip(ours, theirs, strict=True):
            end.close()
            reader, writer = await asyncio.open_connection(sock=mine)
            stack.callback(writer.close)
            ports.append(Port(reader, writer))
        try:
            yield Guest(process, *ports)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def drive(disk: Path, image_format: str = "raw") -> tuple[str, ...]:
    node = f"driver={image_format},node-name=disk,file.driver=file,file.filename={disk}"
    return ("-blockdev", node, "-device", "virtio-blk-pci,drive=disk,bootindex=1")


def booted_as(line: str) -> int | None:
    match = re.search(r"GUEST ROOT /dev/vda2 boots=(\d+)", line)
    return None if match is None else int(match[1])


@pytest.fixture(scope="module")
def built() -> Path:
    return build_root_disk(options=OPTIONS)


@pytest.fixture
def disk(built: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "root.raw"
    copy_disk(built, copy)
    set_command_line(copy, root_disk_command_line(STAMPER, FsyncSettings(rate=100)))
    return copy


async def boot(guest: Guest) -> tuple[int, FsyncBegin]:
    """Waits for the root and the checker; how often the disk was booted, and what the checker found."""
    boots = await guest.console.next(booted_as, BOOT_DEADLINE_S)
    return boots, await guest.heartbeat.next(parse_fsync_begin, WAIT_DEADLINE_S)


async def acknowledged(guest: Guest, least: int) -> FsyncState:
    return await guest.heartbeat.next(
        lambda line: state if (state := parse_fsync_state(line)) and state.acknowledged >= least else None
    )


async def test_guest_boots_from_its_disk_and_what_it_acknowledged_survives_kill_9(disk: Path) -> None:
    async with running(*drive(disk)) as guest:
        boots, begin = await boot(guest)
        await guest.console.line_with(READY)
        await guest.heartbeat.next(parse_heartbeat)
        last = await acknowledged(guest, 1500)  # the area keeps 1023: it has been gone round
        await guest.kill()
    result = check_area(disk, last.acknowledged)

    assert (boots, begin.found, last.wrong) == (1, 0, 0)
    assert (begin.area, begin.slots) == (result.area, 1023)
    assert result.ok, result.wrong
    assert result.highest >= last.acknowledged
    assert result.checked >= result.slots - 1

    async with running(*drive(disk)) as guest:
        boots, begin = await boot(guest)
        again = await acknowledged(guest, result.highest + 50)
    assert (boots, begin.area, begin.found, begin.wrong) == (2, result.area, result.highest, 0)
    assert again.wrong == 0


async def test_lost_record_is_told_by_the_host_and_by_the_guest(disk: Path) -> None:
    async with running(*drive(disk)) as guest:
        await boot(guest)
        last = await acknowledged(guest, 100)
        await guest.kill()
    area_bytes = OPTIONS.layout.check.offset_bytes
    with disk.open("r+b") as opened:
        opened.seek(area_bytes + (1 + 41) * BLOCK_BYTES)
        older = opened.read(BLOCK_BYTES)
        opened.seek(area_bytes + (1 + 50) * BLOCK_BYTES)
        opened.write(older)  # a block in the wrong place
        opened.seek(area_bytes + (1 + 60) * BLOCK_BYTES)
        opened.write(bytes(BLOCK_BYTES))  # a block that was never copied

    result = check_area(disk, last.acknowledged)
    async with running(*drive(disk)) as guest:
        await guest.console.next(booted_as, BOOT_DEADLINE_S)
        wrong = [await guest.heartbeat.next(parse_fsync_wrong) for _ in range(2)]
        begin = await guest.heartbeat.next(parse_fsync_begin)

    assert not result.ok
    told = [(entry.slot, entry.expected, entry.holds) for entry in result.wrong]
    assert told == [(50, 51, "foreign"), (60, 61, "zero")]
    assert [(entry.slot, entry.expected) for entry in wrong] == [(50, 51), (60, 61)]
    assert begin.wrong == 2


async def test_acknowledged_records_that_were_rolled_back_are_missed_by_the_host(
    disk: Path, tmp_path: Path
) -> None:
    async with running(*drive(disk)) as guest:
        await boot(guest)
        await acknowledged(guest, 20)
        copy_disk(disk, tmp_path / "stale.raw")
        last = await acknowledged(guest, 200)
        await guest.kill()

    assert check_area(disk, last.acknowledged).ok
    stale = check_area(tmp_path / "stale.raw", last.acknowledged)
    assert not stale.ok
    assert stale.wrong_count >= 50


async def test_guest_powers_off_with_a_clean_root(disk: Path) -> None:
    async with running(*drive(disk)) as guest:
        await boot(guest)
        await guest.console.line_with(READY)
        guest.console.writer.write(b"\n")
        await asyncio.sleep(0.5)  # the shell takes the line before it can take a command
        guest.console.writer.write(
            b"cd /var && sha256sum -c filler.sha256; echo kept > /root/note; poweroff -f\n"
        )
        filler = await guest.console.next(lambda line: line if "/var/filler: " in line else None)
        async with asyncio.timeout(WAIT_DEADLINE_S):
            assert await guest.process.wait() == 0
    assert filler.rstrip().endswith("OK")

    async with running(*drive(disk)) as guest:
        boots, begin = await boot(guest)
    assert (boots, begin.wrong) == (2, 0)


async def test_qcow2_disk_has_the_same_content_and_boots(built: Path, tmp_path: Path) -> None:
    qcow2 = build_root_disk(options=DiskOptions(OPTIONS.filler_mib, OPTIONS.check_mib, format="qcow2"))
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(built), str(qcow2)],
        capture_output=True,
        check=False,
    )
    copy = tmp_path / "root.qcow2"
    shutil.copyfile(qcow2, copy)

    async with running(*drive(copy, "qcow2")) as guest:
        boots, _begin = await boot(guest)

    assert compared.returncode == 0, compared.stdout
    assert boots == 1


async def test_two_guests_with_addresses_ping_each_other(tmp_path: Path) -> None:
    image = build_guest()
    ends = [tmp_path / name for name in ("a", "b")]

    def nic(own: Path, other: Path, mac: str) -> tuple[str, ...]:
        local = f"local.type=unix,local.path={own},remote.type=unix,remote.path={other}"
        return ("-netdev", f"dgram,id=n,{local}", "-device", f"virtio-net-pci,netdev=n,mac={mac},romfile=")

    def kernel(address: str) -> tuple[str, ...]:
        words = f"{STAMPER} {address_word(address)}"
        return ("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", words)

    async with (
        running(*kernel("10.0.0.5/24"), *nic(ends[0], ends[1], "02:00:00:00:00:05")) as first,
        running(*kernel("10.0.0.6/24"), *nic(ends[1], ends[0], "02:00:00:00:00:06")) as second,
    ):
        for guest, address in ((first, "10.0.0.5"), (second, "10.0.0.6")):
            await guest.console.line_with(f"GUEST NETWORK eth0 {address}", BOOT_DEADLINE_S)
            await guest.console.line_with(READY)
        first.console.writer.write(b"\n")
        await asyncio.sleep(0.5)  # the shell takes the line before it can take a command
        first.console.writer.write(b"ping -c 3 -W 5 10.0.0.6\n")
        answer = await first.console.line_with("packets received")

    assert "3 packets received" in answer

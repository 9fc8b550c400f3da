"""The guest image on a real QEMU: it boots, beats, survives a right migration, and notices a wrong one.

The last is the point: a witness that can't say "wrong" proves nothing, so its memory is really damaged here, in
every way in which a migration could damage it.
"""

import asyncio
import ctypes
import mmap
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from qemu.qmp import QMPClient

from images.build import GuestImage, build_guest
from images.cmdline import kernel_command_line
from images.guest_output import (
    FAILED,
    READY,
    Heartbeat,
    WrongStamp,
    parse_heartbeat,
    parse_status,
    parse_wrong,
)

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
]

RAM_MIB = 128
STAMPER_MIB = 16
STAMPED_PAGES = STAMPER_MIB * 256
PAGE_BYTES = 4096
PAGE_WORDS = PAGE_BYTES // 8
BOOT_DEADLINE_S = 60.0
WAIT_DEADLINE_S = 30.0

# The stamp as images/stamper.c describes it, once more and independently.
WORD_STEP = np.uint64(0x9E3779B97F4A7C15)
UNSCRAMBLE_FACTOR = np.uint64(pow(0xD6E8FEB86659FD93, -1, 1 << 64))
HALF = np.uint64(32)

PR_SET_PDEATHSIG = 1
SHARED_RAM_STAYS = {
    "capabilities": [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
}

Pages = npt.NDArray[np.uint64]
Parsed = TypeVar("Parsed")


class Port:
    """The lines that one serial port gives."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.text = ""

    async def next(
        self, parse: Callable[[str], Parsed | None], deadline_s: float = WAIT_DEADLINE_S
    ) -> Parsed:
        """The next line that the parser takes; others are passed over (and kept in `text`)."""
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    line = (await self._reader.readline()).decode("ascii", "replace")
                    self.text += line
                    assert line.endswith("\n"), "the port was closed"
                    if (parsed := parse(line)) is not None:
                        return parsed
        except TimeoutError:
            pytest.fail(f"nothing of the kind in {deadline_s} s; the port gave:\n{self.text}")

    async def rest(self) -> str:
        """All that comes until the port is closed."""
        async with asyncio.timeout(WAIT_DEADLINE_S):
            self.text += (await self._reader.read()).decode("ascii", "replace")
        return self.text


@dataclass(frozen=True)
class Guest:
    """One QEMU of a test: its RAM as pages of words, its monitor and its two serial ports."""

    ram: Pages
    qmp: QMPClient
    console: Port
    heartbeat: Port


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def arguments(image: GuestImage, options: str, ram_fd: int, sockets: dict[str, socket.socket]) -> list[str]:
    chardevs = [f"socket,id={name},fd={end.fileno()}" for name, end in sockets.items()]
    memory = f"memory-backend-file,id=ram0,size={RAM_MIB}M,mem-path=/proc/self/fd/{ram_fd},share=on"
    return [
        *("-accel", "tcg", "-machine", "pc-q35-7.2,memory-backend=ram0", "-object", memory),
        *("-m", str(RAM_MIB), "-smp", "1", "-cpu", "qemu64", "-nodefaults", "-display", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", options),
        *(word for chardev in chardevs for word in ("-chardev", chardev)),
        *("-mon", "chardev=qmp,mode=control", "-serial", "chardev:console", "-serial", "chardev:heartbeat"),
    ]


@asynccontextmanager
async def running_guest(image: GuestImage, options: str, *more_arguments: str) -> AsyncIterator[Guest]:
    ram_fd = os.memfd_create("guest-ram")
    os.ftruncate(ram_fd, RAM_MIB << 20)
    ours: dict[str, socket.socket] = {}
    theirs: dict[str, socket.socket] = {}
    for name in ("qmp", "console", "heartbeat"):
        ours[name], theirs[name] = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64",
        *arguments(image, options, ram_fd, theirs),
        *more_arguments,
        pass_fds=[ram_fd, *(end.fileno() for end in theirs.values())],
        preexec_fn=die_with_parent,
    )
    for end in theirs.values():
        end.close()
    ram = np.frombuffer(mmap.mmap(ram_fd, RAM_MIB << 20), dtype=np.uint64).reshape(-1, PAGE_WORDS)
    os.close(ram_fd)
    qmp = QMPClient()
    console_reader, console_writer = await asyncio.open_connection(sock=ours["console"])
    heartbeat_reader, heartbeat_writer = await asyncio.open_connection(sock=ours["heartbeat"])
    try:
        async with asyncio.timeout(WAIT_DEADLINE_S):
            await qmp.connect(ours["qmp"])
        yield Guest(ram, qmp, Port(console_reader), Port(heartbeat_reader))
    finally:
        with suppress(EOFError):  # a guest that has powered off took its monitor along
            await qmp.disconnect()
        if process.returncode is None:
            process.kill()
        await process.wait()
        console_writer.close()
        heartbeat_writer.close()


async def wait_ready(guest: Guest) -> None:
    await guest.console.next(lambda line: READY in line or None, BOOT_DEADLINE_S)


async def wait_passes(guest: Guest, passes: int) -> None:
    """Until the whole working set was rewritten that many times more."""
    first = await guest.console.next(parse_status)
    while (await guest.console.next(parse_status)).passes < first.passes + passes:
        pass


def stamp_of(ram: Pages) -> dict[int, tuple[int, int]]:
    """Where the working set lies: for each of its pages the index into RAM and the generation found there.

    A page that is found twice (the guest's kernel had moved it) is where its generation is newest.
    """
    whole = np.flatnonzero((ram[:, 1] - ram[:, 0] == WORD_STEP) & (ram[:, 511] - ram[:, 510] == WORD_STEP))
    steps = np.arange(PAGE_WORDS, dtype=np.uint64) * WORD_STEP
    whole = whole[(ram[whole] - ram[whole, :1] == steps).all(axis=1)]
    value = ram[whole, 0].copy()
    for _round in range(2):
        value ^= value >> HALF
        value *= UNSCRAMBLE_FACTOR
    value ^= value >> HALF
    found: dict[int, tuple[int, int]] = {}
    for index, word in zip(whole.tolist(), value.tolist(), strict=True):
        page, generation = word >> 32, word & 0xFFFFFFFF
        if page < STAMPED_PAGES and generation > found.get(page, (0, 0))[1]:
            found[page] = (index, generation)
    return found


def pages_not_in_work(stamps: dict[int, tuple[int, int]]) -> list[int]:
    """The pages farthest from the one that the guest, stopped at any instruction, may just be writing."""
    newest = max(generation for _index, generation in stamps.values())
    position = sum(generation == newest for _index, generation in stamps.values()) % STAMPED_PAGES
    return [(position + STAMPED_PAGES // 2 + i * 16) % STAMPED_PAGES for i in range(8)]


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return build_guest()


async def test_guest_booted_stamps_beats_and_powers_off(image: GuestImage) -> None:
    async with running_guest(image, kernel_command_line(STAMPER_MIB, 20, "random")) as guest:
        await wait_ready(guest)
        status = await guest.console.next(parse_status)
        beats = [await guest.heartbeat.next(parse_heartbeat) for _ in range(100)]
        await wait_passes(guest, 2)

        assert status.pages == STAMPED_PAGES
        assert status.wrong == 0
        assert 0 < status.rate_mib_s <= 25
        assert [beat.sequence for beat in beats] == list(range(100))
        assert all(earlier.guest_ms <= later.guest_ms for earlier, later in pairwise(beats))
        assert {beat.wrong for beat in beats} == {0}

        with guest.qmp.listener("SHUTDOWN") as shutdown:
            await guest.qmp.execute("system_powerdown")
            async with asyncio.timeout(WAIT_DEADLINE_S):
                event = await shutdown.get()
        assert event["data"] == {"guest": True, "reason": "guest-shutdown"}


async def test_guest_whose_memory_is_damaged_says_which_pages_and_how(image: GuestImage) -> None:
    async with running_guest(image, kernel_command_line(STAMPER_MIB, 20)) as guest:
        await wait_ready(guest)
        await guest.qmp.execute("stop")
        old = {
            page: (guest.ram[index].copy(), generation)
            for page, (index, generation) in stamp_of(guest.ram).items()
        }
        await guest.qmp.execute("cont")
        await wait_passes(guest, 2)
        await guest.qmp.execute("stop")
        stamps = stamp_of(guest.ram)
        assert len(stamps) >= STAMPED_PAGES - 1, "all but the page in work must be found"
        bit, zero, stale, torn, foreign, other, *_ = pages_not_in_work(stamps)
        place = {page: stamps[page][0] for page in (bit, zero, stale, torn, foreign, other)}
        guest.ram[place[bit], 77] ^= np.uint64(1 << 40)
        guest.ram[place[zero]] = 0
        guest.ram[place[stale]] = old[stale][0]
        guest.ram[place[torn], 256:] = old[torn][0][256:]
        guest.ram[place[foreign]] = guest.ram[place[other]]
        await guest.qmp.execute("cont")
        on_console = {
            wrong.page: wrong for wrong in [await guest.console.next(parse_wrong) for _ in range(5)]
        }
        on_heartbeat = {
            wrong.page: wrong for wrong in [await guest.heartbeat.next(parse_wrong) for _ in range(5)]
        }
        await wait_passes(guest, 2)
        beat = await guest.heartbeat.next(lambda line: wrong_beat(line, 5))
        status = await guest.console.next(parse_status)

    assert on_console == on_heartbeat
    assert status.wrong == beat.wrong == 5, "each damage is counted once, and nothing else"

    def summary(page: int) -> tuple[int, int, str, int | None, int | None]:
        wrong = on_console[page]
        assert wrong.generation == stamps[page][1]
        return wrong.word, wrong.wrong_words, wrong.holds, wrong.holds_page, wrong.holds_generation

    assert summary(bit) == (77, 1, "foreign", None, None)
    assert on_console[bit].expected ^ on_console[bit].found == 1 << 40
    assert summary(zero) == (0, 512, "zero", None, None)
    assert summary(stale) == (0, 512, "stamp", stale, old[stale][1])
    assert summary(torn) == (256, 256, "stamp", torn, old[torn][1])
    assert summary(foreign) == (0, 512, "stamp", other, stamps[other][1])


def wrong_beat(line: str, wrong: int) -> Heartbeat | None:
    beat = parse_heartbeat(line)
    return beat if beat is not None and beat.wrong == wrong else None


async def test_idle_guest_whose_page_is_damaged_finds_it_by_its_sweep(image: GuestImage) -> None:
    async with running_guest(image, kernel_command_line(STAMPER_MIB, 0, sweep_mib_s=16)) as guest:
        await wait_ready(guest)
        await guest.qmp.execute("stop")
        stamps = stamp_of(guest.ram)
        guest.ram[stamps[1234][0], 511] += np.uint64(1)
        await guest.qmp.execute("cont")
        wrong: WrongStamp = await guest.console.next(parse_wrong)
        status = await guest.console.next(parse_status)

    assert (wrong.page, wrong.word, wrong.wrong_words, wrong.generation) == (1234, 511, 1, 1)
    assert status.passes == 0
    assert status.rate_mib_s == 0


async def test_guest_moved_to_another_qemu_keeps_its_stamps_and_misses_no_beat(
    image: GuestImage, tmp_path: Path
) -> None:
    options = kernel_command_line(STAMPER_MIB, 20)
    address = f"unix:{tmp_path / 'device-state'}"
    async with (
        running_guest(image, options) as source,
        running_guest(image, options, "-incoming", "defer") as destination,
    ):
        await wait_ready(source)
        await wait_passes(source, 1)
        # The RAM is copied here, while the guest is stopped: QEMU's own pre-copy can lose a store of an
        # emulated vCPU that the host descheduled between its look at the dirty state and the store.
        for side in (source, destination):
            await side.qmp.execute("migrate-set-capabilities", SHARED_RAM_STAYS)
        await destination.qmp.execute("migrate-incoming", {"uri": address})
        await source.qmp.execute("stop")
        destination.ram[:] = source.ram
        with destination.qmp.listener("MIGRATION", arrived) as migration:
            await source.qmp.execute("migrate", {"uri": address})
            async with asyncio.timeout(WAIT_DEADLINE_S):
                await migration.get()
        await destination.qmp.execute("cont")
        await source.qmp.execute("quit")
        before = await source.heartbeat.rest()
        await wait_passes(destination, 3)
        status = await destination.console.next(parse_status)
        for _ in range(200):
            await destination.heartbeat.next(parse_heartbeat)

    # A beat may have been half sent when the source stopped: the two halves make one line.
    lines = (before + destination.heartbeat.text).splitlines(keepends=True)
    beats = [parse_heartbeat(line) for line in lines]
    assert None not in beats
    assert [beat.sequence for beat in beats if beat is not None] == list(range(len(lines)))
    assert status.wrong == 0


def arrived(event: Mapping[str, object]) -> bool:
    data = event["data"]
    return isinstance(data, dict) and data.get("status") in ("completed", "failed")


async def test_guest_without_the_memory_for_its_stamper_says_so_and_is_never_ready(image: GuestImage) -> None:
    async with running_guest(image, kernel_command_line(RAM_MIB, 20)) as guest:
        failure = await guest.console.next(lambda line: line if FAILED in line else None, BOOT_DEADLINE_S)

    assert f"stamper.mib={RAM_MIB}" in failure
    assert READY not in guest.console.text

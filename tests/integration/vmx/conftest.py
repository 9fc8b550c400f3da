"""vmx's integration tests run on the event loop that vmx runs on; guests of either kind for the contract's tests."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.framework.guest_processes import FAKE_QEMU, GUEST_KERNEL, GuestProcesses, qemu_binary

FAKE, QEMU = "fake", "qemu"
KINDS = [FAKE, pytest.param(QEMU, marks=pytest.mark.qemu)]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """pytest-asyncio's hook: the loop of every test in this folder."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's own: a socket's address must be short.
    path = Path(tempfile.mkdtemp(prefix="guest-"))
    yield path
    shutil.rmtree(path)


def _kind(name: str, folder: Path, *, has_kernel: bool) -> GuestProcesses:
    binary = FAKE_QEMU if name == FAKE else qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    if has_kernel and name == QEMU and not GUEST_KERNEL.exists():
        pytest.skip("no guest image: python -m images.build")
    return GuestProcesses(binary, folder, has_kernel)


@pytest.fixture(params=KINDS)
async def firmware(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[GuestProcesses]:
    """Guests without an operating system."""
    processes = _kind(request.param, folder, has_kernel=False)
    yield processes
    await processes.end_all()


@pytest.fixture(params=KINDS)
async def linux(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[GuestProcesses]:
    """Guests that beat, and stamp and check their memory."""
    processes = _kind(request.param, folder, has_kernel=True)
    yield processes
    await processes.end_all()


@pytest.fixture
async def fakes(folder: Path) -> AsyncIterator[GuestProcesses]:
    """Fake guests only."""
    processes = _kind(FAKE, folder, has_kernel=True)
    yield processes
    await processes.end_all()

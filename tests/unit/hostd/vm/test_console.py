"""The console is read to its end, followed across appends, replacement and absence."""

import asyncio
from pathlib import Path

import pytest

from hostd.vm.console import read_console
from runtime.faults import CannotAccessFile, FileNotFound


async def collect(path: Path, tail_bytes: int = 0) -> bytes:
    return b"".join([data async for data in read_console(path, tail_bytes, follow=False)])


class Follower:
    """Collects what following yields, for as long as the block lasts."""

    def __init__(self, path: Path, tail_bytes: int = 0) -> None:
        self.seen = b""
        self._stream = read_console(path, tail_bytes, follow=True)

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.seen:
                self.seen += await anext(self._stream)


async def test_read_whole_and_tail(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"a" * 100_000 + b"end")
    assert await collect(path) == path.read_bytes()
    assert await collect(path, 5) == b"aaend"
    assert await collect(path, 1 << 40) == path.read_bytes()


async def test_read_missing_file_and_link(tmp_path: Path) -> None:
    with pytest.raises(FileNotFound):
        await collect(tmp_path / "console.log")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(CannotAccessFile):
        await collect(tmp_path / "link")


async def test_follow_goes_on_over_appends_truncation_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    follower = Follower(path, tail_bytes=3)
    waiting = asyncio.create_task(follower.until(b"first"))
    await asyncio.sleep(0.1)
    path.write_bytes(b"first\n")
    await waiting
    with open(path, "ab") as file:
        file.write(b"second\n")
    await follower.until(b"second")
    path.write_bytes(b"3rd\n")
    await follower.until(b"3rd")
    (tmp_path / "new").write_bytes(b"fourth, in a longer file\n")
    (tmp_path / "new").replace(path)
    await follower.until(b"longer file")
    assert follower.seen == b"first\nsecond\n3rd\nfourth, in a longer file\n"

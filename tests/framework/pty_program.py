"""A program on a terminal of its own, as a person sees it: what it shows, what is typed, Ctrl-C."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

DEADLINE_S = 30.0
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[0-Z\\`-~]|\r")


class PtyProgram:
    """`see` reads on from where the last one ended; `screen` is everything so far, without escape sequences."""

    def __init__(self, leader: int, process: asyncio.subprocess.Process) -> None:
        self._leader = leader
        self._process = process
        self._data = b""
        self._at = 0
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(leader, self._read)

    @property
    def screen(self) -> str:
        return _ESCAPES.sub("", self._data.decode("utf-8", "replace"))

    async def see(self, text: str) -> str:
        """What comes up to and with `text`. An AssertionError if it doesn't come."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    self._news.clear()
                    screen = self.screen
                    found = screen.find(text, self._at)
                    if found >= 0:
                        begin, self._at = self._at, found + len(text)
                        return screen[begin : self._at]
                    assert not self._closed, f"it ended without {text!r}:\n{screen[-3000:]}"
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} never came:\n{self.screen[-3000:]}") from None

    async def answer(self, question: str, *replies: str) -> str:
        """Types the replies at the prompt after the question, one line each; answers what was shown up to it."""
        shown = await self.see(question) + await self.see("> ")
        for reply in replies:
            self.type(f"{reply}\n")
        return shown

    def type(self, text: str) -> None:
        """Keys, as they come; "\\x03" is Ctrl-C."""
        os.write(self._leader, text.encode())

    async def end(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(DEADLINE_S):
            status = await self._process.wait()
            while not self._closed:
                self._news.clear()
                await self._news.wait()
        return status

    async def close(self) -> None:
        """The end of the test: the program dies with it."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if not self._closed:
            asyncio.get_running_loop().remove_reader(self._leader)
        os.close(self._leader)

    _closed = False

    def _read(self) -> None:
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            data = b""
        if not data:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._leader)
        self._data += data
        self._news.set()


@asynccontextmanager
async def pty_program(words: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[PtyProgram]:
    """Runs `words` with the terminal as its controlling one (setsid --ctty), 160 columns wide."""
    leader, follower = os.openpty()
    env = {**environment, "TERM": "xterm", "COLUMNS": "160", "LINES": "60"}
    try:
        process = await asyncio.create_subprocess_exec(
            "setsid", "--ctty", *words, stdin=follower, stdout=follower, stderr=follower, env=env, cwd="/"
        )
    finally:
        os.close(follower)
    program = PtyProgram(leader, process)
    try:
        yield program
    finally:
        await program.close()

"""A VM's port: the socket of one NIC, as its QEMU has bound it, and a short queue before it.

A connected socket of our own leads to it, so that no path is looked up per frame, and so that epoll(7) tells when a
full one takes frames again (a unix datagram socket holds `net.unix.max_dgram_qlen` of them: 10 by default, which a
guest that waits for its processor for a few milliseconds fills). A connected socket stays with the socket file it was
connected to: another QEMU under the same path is another port.
"""

import errno
import os
import re
import socket
from collections import deque
from enum import Enum, auto
from pathlib import Path

from vswitch.table import Way

# A burst of one TCP window; more only makes what is late later.
BACKLOG_MAX_FRAMES = 256
_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9]{4}\.sock")


class Sent(Enum):
    """What became of a frame."""

    DONE = auto()
    WAITING = auto()  # queued: tell `flush` when the socket can be written
    LOST = auto()  # the queue is full, or it is too long for the receiver
    DEAD = auto()  # nobody has the port any more


def is_port_name(name: str) -> bool:
    """Whether a file's name can be a port's: 13 characters of the VM's uuid, the NIC's key."""
    return _NAME.fullmatch(name) is not None


def file_identity(path: Path) -> str:
    """Which file this is, whatever is put under the path later. :raises OSError: there is none."""
    found = os.stat(path, follow_symlinks=False)
    return f"{found.st_ino} {found.st_mtime_ns}"


class Port(Way):
    """One NIC's port. :raises OSError: on making it, if nobody has bound the path."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.identity = file_identity(path)
        self._path = path
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._backlog: deque[bytes] = deque()
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For epoll."""
        return self._socket.fileno()

    @property
    def is_current(self) -> bool:
        """Whether its path still is the socket that it leads to."""
        try:
            return file_identity(self._path) == self.identity
        except OSError:
            return False

    def send(self, frame: bytes) -> Sent:
        """Hand a frame over, after those that wait."""
        if self._backlog:
            if len(self._backlog) >= BACKLOG_MAX_FRAMES:
                return Sent.LOST
            self._backlog.append(frame)
            return Sent.WAITING
        try:
            self._socket.send(frame)
        except BlockingIOError:
            self._backlog.append(frame)
            return Sent.WAITING
        except OSError as error:
            return _verdict(error)
        return Sent.DONE

    def flush(self) -> Sent:
        """Hand over what waits. DONE: nothing waits any more."""
        while self._backlog:
            try:
                self._socket.send(self._backlog[0])
            except BlockingIOError:
                return Sent.WAITING
            except OSError as error:
                if _verdict(error) is Sent.DEAD:
                    return Sent.DEAD
            self._backlog.popleft()
        return Sent.DONE

    def close(self) -> None:
        """Let go of it; what waits is lost."""
        self._backlog.clear()
        self._socket.close()


def _verdict(error: OSError) -> Sent:
    """A frame that the receiver can't take is lost; any other error means that there's no receiver."""
    is_frames_fault = error.errno in (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM)
    return Sent.LOST if is_frames_fault else Sent.DEAD

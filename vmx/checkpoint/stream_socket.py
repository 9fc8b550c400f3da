"""The unix sockets over which QEMU's migration stream passes, all of it inside one host. Blocking, for a thread."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["connected_to", "listening_on", "uri_of"]


def uri_of(socket_path: Path) -> str:
    """The address as QMP's `migrate` and `migrate-incoming` take it."""
    return f"unix:{socket_path}"


def listening_on(socket_path: Path) -> socket.socket:
    """A non-blocking socket that listens there, for this user only. A socket file left behind is replaced.

    :raises OSError: the address can't be bound.
    """
    socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(socket_path))
        os.chmod(socket_path, 0o600)
        listener.listen(1)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def connected_to(socket_path: Path, deadline_s: float) -> socket.socket:
    """A non-blocking socket that is connected to the one listening there.

    :raises OSError: nothing listens there; TimeoutError where it is busy.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(deadline_s)
        connection.connect(str(socket_path))
        connection.setblocking(False)
    except OSError:
        connection.close()
        raise
    return connection

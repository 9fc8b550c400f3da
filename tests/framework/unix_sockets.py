"""Which unix sockets processes listen on, by the inodes of their descriptors (proc(5), /proc/PID/net/unix)."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_ACCEPTS = 0x10000  # __SO_ACCEPTCON of the kernel's net.h


def listening_unix_sockets(pids: Iterable[int]) -> set[str]:
    """Their paths; of an abstract one its name with "@"."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    inodes.add(os.readlink(entry.path))
    found = set()
    for line in Path("/proc/self/net/unix").read_text().split("\n")[1:-1]:
        fields = line.split(maxsplit=7)
        if f"socket:[{fields[6]}]" in inodes and int(fields[3], 16) & _ACCEPTS:
            found.add(fields[7] if len(fields) > 7 else "")
    return found

"""Which TCP sockets processes really have: by the inodes of their descriptors in the kernel's tables, not by settings.

Sources: proc(5), /proc/PID/fd and /proc/PID/net/tcp, tcp6.
"""

import ipaddress
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True)
class TcpSocket:
    """One socket of one process. A listening one has no remote end."""

    pid: int
    address: str
    port: int
    remote_address: str
    remote_port: int
    listens: bool


def tcp_sockets(pids: Iterable[int]) -> list[TcpSocket]:
    """The TCP sockets of these processes now; a process that is gone has none."""
    owners: dict[str, list[int]] = {}
    for pid in pids:
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    owners.setdefault(os.readlink(entry.path), []).append(pid)
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().split("\n")[1:-1]:
            fields = line.split()
            (address, port), (remote, remote_port) = _end(fields[1]), _end(fields[2])
            for pid in owners.get(f"socket:[{fields[9]}]", ()):
                found.append(TcpSocket(pid, address, port, remote, remote_port, fields[3] == _LISTEN))
    return found


def _end(text: str) -> tuple[str, int]:
    """`0100007F:1F90` as ("127.0.0.1", 8080): words of 32 bits in the machine's order."""
    raw, port = text.split(":")
    packed = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8))
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped), int(port, 16)
    return str(address), int(port, 16)

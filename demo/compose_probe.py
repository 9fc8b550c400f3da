"""Looks at a container's network from inside, with nothing but the standard library.

It isn't part of the image: `as_argument` makes it (and other modules of demo) the argument of `python -c`, so that the
demonstration can run it in any container that has a Python.

    counters               {"10.77.1.11": {"rx": bytes, "tx": bytes}, ...} for each interface but loopback
    connections            says "watching", then the TCP connections of this network namespace that were seen until
                           standard input was closed, each once: [local address, port, remote address, port]

Addresses and ports are as /proc/net/tcp has them (proc(5)); counters are those of /proc/net/dev.
"""

import fcntl
import json
import select
import socket
import struct
import sys
from pathlib import Path

_SIOCGIFADDR = 0x8915  # netdevice(7)
_NAME_BYTES = 16
# linux/include/net/tcp_states.h. TIME_WAIT is what stays of a connection that has ended, for a minute.
_TIME_WAIT, _LISTEN = 0x06, 0x0A
_SAMPLE_S = 0.1


def counters() -> dict[str, dict[str, int]]:
    """Bytes received and sent by the interface that holds each address."""
    found = {}
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        address = _address_of(name.strip())
        if address and not address.startswith("127."):
            found[address] = {"rx": int(fields[0]), "tx": int(fields[8])}
    return found


def _address_of(interface: str) -> str:
    """Its IPv4 address; empty: it has none."""
    request = struct.pack("256s", interface.encode()[: _NAME_BYTES - 1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def parse_connections(text: str) -> set[tuple[str, int, str, int]]:
    """Pure: the connections in a text of /proc/net/tcp; listening sockets and ended connections aren't any."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) not in (_LISTEN, _TIME_WAIT):
            found.add((*_end(fields[1]), *_end(fields[2])))
    return found


def _end(text: str) -> tuple[str, int]:
    """ "0B014D0A:20FB" is 10.77.1.11:8443: the address is in the machine's byte order."""
    address, _, port = text.partition(":")
    return socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16)


def watch_connections() -> list[tuple[str, int, str, int]]:
    """The connections that were there at any look until standard input was closed."""
    found: set[tuple[str, int, str, int]] = set()
    table = Path("/proc/net/tcp")
    print("watching", flush=True)
    while True:
        found |= parse_connections(table.read_text(encoding="ascii"))
        if select.select([sys.stdin], [], [], _SAMPLE_S)[0]:
            return sorted(found)


def as_argument(modules: tuple[str, ...], call: str) -> str:
    """A program for `python -c` that has these modules of demo, by their names, and does `call`.

    A module may import those before it.
    """
    lines = ["import sys, types"]
    for name in modules:
        source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        full = f"demo.{name}"
        lines += [
            f"{name} = sys.modules[{full!r}] = types.ModuleType({full!r})",
            f"exec(compile({source!r}, {full!r}, 'exec'), {name}.__dict__)",
        ]
    return "\n".join([*lines, call])


def main(what: str) -> None:
    """Prints the answer to "counters" or "connections" as JSON."""
    print(json.dumps(counters() if what == "counters" else watch_connections()))

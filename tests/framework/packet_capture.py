"""Every TCP packet on the loopback while a block runs, as the kernel sees it (packet(7)). Needs CAP_NET_RAW."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_ETH_P_IP = 0x0800
_ETHERNET_BYTES = 14
_TCP = 6
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 256 << 20
_PACKET_BYTES = 1 << 18
_LOOK_S = 0.1


@dataclass(frozen=True, order=True)
class Flow:
    """One direction of one TCP connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int

    @property
    def addresses(self) -> frozenset[str]:
        """Both."""
        return frozenset({self.source, self.destination})

    @property
    def ends(self) -> frozenset[tuple[str, int]]:
        """Both, with their ports."""
        return frozenset({(self.source, self.source_port), (self.destination, self.destination_port)})


@dataclass
class Capture:
    """What was seen: each flow's payload in the order of its packets. `lost` packets weren't."""

    payloads: dict[Flow, bytearray] = field(default_factory=dict)
    lost: int = 0

    def flows_with(self, pattern: bytes) -> list[Flow]:
        """The flows that hold these bytes."""
        return sorted(flow for flow, payload in self.payloads.items() if pattern in payload)

    def take(self, packet: bytes) -> None:
        """Files one Ethernet frame; what isn't TCP over IPv4 is left out."""
        ip = memoryview(packet)[_ETHERNET_BYTES:]
        if len(ip) < 40 or ip[0] >> 4 != 4 or ip[9] != _TCP:
            return
        header = (ip[0] & 15) * 4
        total = int.from_bytes(ip[2:4], "big") or len(ip)  # 0: larger than 64 KiB, segmented later
        ports = struct.unpack_from(">HH", ip, header)
        payload = ip[header + (ip[header + 12] >> 4) * 4 : total]
        flow = Flow(socket.inet_ntoa(ip[12:16]), ports[0], socket.inet_ntoa(ip[16:20]), ports[1])
        if payload:
            self.payloads.setdefault(flow, bytearray()).extend(payload)


@contextmanager
def loopback_capture() -> Iterator[Capture]:
    """Captures while the body runs; complete after it.

    :raises PermissionError: this process may not.
    """
    capture, stop = Capture(), threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.bind(("lo", _ETH_P_IP))
        sock.settimeout(_LOOK_S)
        reader = threading.Thread(target=_read, args=(sock, capture, stop))
        reader.start()
        try:
            yield capture
        finally:
            stop.set()
            reader.join()
        capture.lost = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]


def _read(sock: socket.socket, capture: Capture, stop: threading.Event) -> None:
    """Until it is told to stop and nothing more is there."""
    while True:
        try:
            packet, origin = sock.recvfrom(_PACKET_BYTES)
        except TimeoutError:
            if stop.is_set():
                return
            continue
        if origin[2] != socket.PACKET_OUTGOING:  # on loopback each packet passes twice
            capture.take(packet)

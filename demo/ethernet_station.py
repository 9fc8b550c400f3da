"""A computer on the virtual machines' network that is no VM: it answers ARP and ping, and pings by itself.

It stands outside of all hosts, as one more end of the VXLAN tunnels between their virtual switches, on a loopback
address. It sees what a physical switch would see: where each MAC was last heard of, and the RARP frames by which a
VM that has moved announces itself.

    station = EthernetStation(("127.0.23.250", 4789), peers, Interface(100, "02:00:00:00:00:fe", "10.0.0.9"))
    with station, station.pinging("10.0.0.5") as pings:
        ...
    print(pings.result())
"""

import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Address = tuple[str, int]
BROADCAST = b"\xff" * 6
ARP, RARP, IPV4 = 0x0806, 0x8035, 0x0800
_ANSWER_WITHIN_S = 1.0
_IDENTIFIER = 0x5354


@dataclass(frozen=True)
class Interface:
    """The station's NIC."""

    segment_id: int
    mac: str
    ip: str


@dataclass(frozen=True)
class PingResult:
    """What became of the pings that were sent up to a second before the end. Times in ms."""

    sent: int
    lost: int
    duplicates: int
    longest_gap_ms: float
    latest_start_ms: float
    median_ms: float
    p99_ms: float


@dataclass
class Announcement:
    """A RARP frame that was heard: which MAC, through which host's switch."""

    mac: str
    peer: Address
    at_s: float


@dataclass
class Pings:
    """One series of echo requests, one every `interval_ms`."""

    target: bytes
    interval_ms: float
    sent_s: list[float] = field(default_factory=list)
    answered_s: dict[int, float] = field(default_factory=dict)
    duplicates: int = 0
    latest_start_s: float = 0.0

    def result(self, since: int = 0) -> PingResult:
        """The figures so far, of pings from number `since` on; 0: from the first that was answered on."""
        until_s = time.monotonic() - _ANSWER_WITHIN_S
        answered = sorted(number for number in self.answered_s if number >= since)
        first = since if since or not answered else answered[0]
        counted = [number for number in range(first, len(self.sent_s)) if self.sent_s[number] < until_s]
        if not answered:
            return PingResult(len(counted), len(counted), 0, 0.0, 0.0, 0.0, 0.0)
        arrivals = sorted(self.answered_s.values())
        gaps = [
            later - earlier for earlier, later in itertools.pairwise(arrivals) if later > self.sent_s[first]
        ]
        trips = sorted(self.answered_s[number] - self.sent_s[number] for number in answered)
        return PingResult(
            sent=len(counted),
            lost=sum(1 for number in counted if number not in self.answered_s),
            duplicates=self.duplicates,
            longest_gap_ms=round(max(gaps, default=0.0) * 1000, 1),
            latest_start_ms=round(self.latest_start_s * 1000, 1),
            median_ms=round(trips[len(trips) // 2] * 1000, 2),
            p99_ms=round(trips[len(trips) * 99 // 100] * 1000, 2),
        )


class EthernetStation:
    """A context manager: from entering to leaving a thread answers and pings."""

    def __init__(self, address: Address, peers: list[Address], interface: Interface) -> None:
        self.mac = bytes.fromhex(interface.mac.replace(":", ""))
        self.ip = socket.inet_aton(interface.ip)
        self.announcements: list[Announcement] = []
        self.frames_from: dict[str, int] = {}
        self._header = b"\x08\0\0\0" + interface.segment_id.to_bytes(3, "big") + b"\0"
        self._address = address
        self._peers = peers
        self._neighbors: dict[bytes, bytes] = {}
        self._where: dict[bytes, Address] = {}
        self._pings: Pings | None = None
        self._next_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ethernet-station")

    def __enter__(self) -> "EthernetStation":
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._socket.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def where(self, mac: str) -> Address | None:
        """The host whose switch the MAC was last heard through."""
        return self._where.get(bytes.fromhex(mac.replace(":", "")))

    @contextmanager
    def pinging(self, target: str, interval_ms: float = 10.0) -> Iterator[Pings]:
        """Pings the address for as long as the body runs; one target at a time."""
        pings = Pings(socket.inet_aton(target), interval_ms)
        self._next_s = time.monotonic()
        self._pings = pings
        try:
            yield pings
        finally:
            self._pings = None

    # ---- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            now_s = time.monotonic()
            pings = self._pings
            if pings is not None and now_s >= self._next_s:
                pings.latest_start_s = max(pings.latest_start_s, now_s - self._next_s)
                # What this thread was late for isn't sent in a burst.
                self._next_s = max(self._next_s + pings.interval_ms / 1000, now_s)
                self._ping(pings, now_s)
            left_s = max(0.0, self._next_s - time.monotonic()) if pings is not None else 0.02
            if select.select([self._socket], [], [], min(left_s, 0.02))[0]:
                self._receive()

    def _ping(self, pings: Pings, now_s: float) -> None:
        mac = self._neighbors.get(pings.target)
        if mac is None:
            body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + self.mac + self.ip + bytes(6) + pings.target
            self._send(BROADCAST, ARP, body)
            return
        number = len(pings.sent_s)
        pings.sent_s.append(now_s)
        echo = _echo(
            8, struct.pack("!HH", _IDENTIFIER, number & 0xFFFF), struct.pack("!Q", number) + bytes(40)
        )
        self._send(mac, IPV4, _ipv4(self.ip, pings.target, echo))

    def _send(self, destination: bytes, kind: int, body: bytes) -> None:
        frame = destination + self.mac + kind.to_bytes(2, "big") + body
        known = self._where.get(destination)
        for peer in [known] if known is not None else self._peers:
            self._socket.sendto(self._header + frame.ljust(60, b"\0"), peer)

    def _receive(self) -> None:
        for _ in range(64):
            try:
                datagram, peer = self._socket.recvfrom(65535)
            except BlockingIOError:
                return
            if datagram[:8] == self._header and len(datagram) >= 22:
                self._take(datagram[8:], peer)

    def _take(self, frame: bytes, peer: Address) -> None:
        destination, source, kind = frame[:6], frame[6:12], int.from_bytes(frame[12:14], "big")
        self._where[source] = peer
        self.frames_from[peer[0]] = self.frames_from.get(peer[0], 0) + 1
        body = frame[14:]
        if kind == RARP:
            self.announcements.append(Announcement(source.hex(":"), peer, time.monotonic()))
        elif kind == ARP and len(body) >= 28:
            self._neighbors[body[14:18]] = body[8:14]
            if body[6:8] == b"\0\x01" and body[24:28] == self.ip:
                answer = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + self.mac + self.ip + body[8:18]
                self._send(body[8:14], ARP, answer)
        elif kind == IPV4 and destination == self.mac and len(body) >= 28 and body[9] == 1:
            self._take_icmp(source, body)

    def _take_icmp(self, mac: bytes, packet: bytes) -> None:
        header_bytes = (packet[0] & 15) * 4
        icmp, sender = packet[header_bytes : int.from_bytes(packet[2:4], "big")], packet[12:16]
        if icmp[:1] == b"\x08":
            self._send(mac, IPV4, _ipv4(self.ip, sender, _echo(0, icmp[4:8], icmp[8:])))
        pings = self._pings
        if icmp[:1] != b"\0" or pings is None or sender != pings.target or len(icmp) < 16:
            return
        number = int.from_bytes(icmp[8:16], "big")
        if number < len(pings.sent_s):
            pings.duplicates += number in pings.answered_s
            pings.answered_s.setdefault(number, time.monotonic())


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _echo(kind: int, rest: bytes, body: bytes) -> bytes:
    checksum = _checksum(struct.pack("!BBH", kind, 0, 0) + rest + body)
    return struct.pack("!BBH", kind, 0, checksum) + rest + body


def _ipv4(source: bytes, target: bytes, body: bytes) -> bytes:
    without = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0) + source + target
    return without[:10] + _checksum(without).to_bytes(2, "big") + without[12:] + body

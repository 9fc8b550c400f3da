"""The process's one loop: whichever socket has frames gets its turn, and no turn is long.

    VM ── unix datagrams ──▶ segment ──▶ unix datagrams ──▶ VM
                                │ ▲
                                ▼ │
                           uplink: VXLAN over UDP, one socket for all segments ◀──▶ the other hosts' switches

Peers are a fixed list. What must go everywhere is sent to each of them (head-end replication, RFC 7348 section 4.2
without its multicast group), and a peer's frames never go to another peer. Whoever isn't in the list isn't heard; the
list is the only protection, as in any VXLAN: the network between the switches must be a trusted one.
"""

import fcntl
import os
import select
import signal
import socket
from pathlib import Path
from types import FrameType, TracebackType

import structlog

from vswitch.config import Config
from vswitch.errors import AlreadyRunning, SocketUnusable
from vswitch.frames import FRAME_MAX_BYTES, VXLAN_HEADER_BYTES, vni_of
from vswitch.pid_file import PID_FILE, write_pid_file
from vswitch.port import Port
from vswitch.segment import TURN_FRAMES, Outside, Peer, Segment

LOCK_FILE = "lock"
_HOUSEKEEPING_S = 30.0
_UDP_BUFFER_BYTES = 4 << 20
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0  # linux/in.h: the kernel fragments what doesn't fit

_log = structlog.get_logger(__name__)


class VirtualSwitch:
    """A host's switch: a context manager, `run` inside it. It has its sockets, and has said so, once it is entered.

    :raises AlreadyRunning: on entering, another one has this directory.
    :raises SocketUnusable: on entering, an address or a path can't be bound.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._segments: dict[int, Segment] = {}
        self._by_socket: dict[int, Segment] = {}
        self._full_ports: dict[int, tuple[Port, Segment]] = {}
        self._peers: dict[str, Peer] = {}
        self._is_told_to_end = False
        self._strangers = 0
        self._told = 0
        self._lock = self._uplink_fd = -1

    def __enter__(self) -> "VirtualSwitch":
        config = self._config
        config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(config.directory)
        self._peers = {host: Peer((host, port)) for host, port in config.peers if host != config.address[0]}
        self._uplink = _bind_uplink(config)
        self._uplink_fd = self._uplink.fileno()
        self._epoll = select.epoll()
        self._epoll.register(self._uplink_fd, select.EPOLLIN)
        outside = Outside(self._send_to_peer, self._watch, self._unwatch)
        for segment_id in config.segment_ids:
            segment = Segment(config.directory, segment_id, list(self._peers.values()), outside)
            self._segments[segment_id] = segment
            self._by_socket[segment.socket.fileno()] = segment
            self._epoll.register(segment.socket.fileno(), select.EPOLLIN)
        self._catch_signals()
        write_pid_file(config.directory / PID_FILE)
        peers = [peer.name for peer in self._peers.values()]
        address = "{}:{}".format(*self._uplink.getsockname())
        _log.info("switching", address=address, segments=list(self._segments), peers=peers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._config.directory / PID_FILE).unlink(missing_ok=True)
        signal.set_wakeup_fd(-1)
        for segment in self._segments.values():
            segment.close()
        self._uplink.close()
        self._epoll.close()
        self._wake_reader.close()
        self._wake_writer.close()
        os.close(self._lock)

    @property
    def uplink_address(self) -> tuple[str, int]:
        """Where peers send to."""
        host, port = self._uplink.getsockname()
        return str(host), int(port)

    def run(self) -> None:
        """Carry frames until SIGTERM or SIGINT."""
        while not self._is_told_to_end:
            events = self._epoll.poll(_HOUSEKEEPING_S)
            for descriptor, _event in events:
                segment = self._by_socket.get(descriptor)
                if segment is not None:
                    segment.take_from_ports()
                elif descriptor == self._uplink_fd:
                    self._take_from_uplink()
                elif descriptor in self._full_ports:
                    port, owner = self._full_ports[descriptor]
                    owner.flush(port)
                elif descriptor == self._wake_reader.fileno():
                    self._wake_reader.recv(4096)
            if not events:
                self._keep_house()
        _log.info("switch_ends", **self._totals())

    def _take_from_uplink(self) -> None:
        for _ in range(TURN_FRAMES):
            try:
                datagram, address = self._uplink.recvfrom(FRAME_MAX_BYTES + VXLAN_HEADER_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error about an earlier datagram (udp(7)): a peer is away
                _log.debug("uplink_error", reason=str(error))
                continue
            peer = self._peers.get(address[0])
            vni = vni_of(datagram)
            segment = self._segments.get(vni) if vni is not None else None
            if peer is None or segment is None:
                self._strangers += 1
                continue
            segment.take_from_peer(datagram[VXLAN_HEADER_BYTES:], peer)

    def _send_to_peer(self, datagram: bytes, peer: Peer) -> bool:
        try:
            self._uplink.sendto(datagram, peer.address)
        except OSError:  # a full buffer, no route: as on any wire, the frame is lost and counted
            return False
        return True

    def _watch(self, port: Port, segment: Segment) -> None:
        if port.fileno() not in self._full_ports:
            self._full_ports[port.fileno()] = (port, segment)
            self._epoll.register(port.fileno(), select.EPOLLOUT)

    def _unwatch(self, port: Port) -> None:
        if self._full_ports.pop(port.fileno(), None) is not None:
            self._epoll.unregister(port.fileno())

    def _catch_signals(self) -> None:
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._epoll.register(self._wake_reader.fileno(), select.EPOLLIN)
        signal.set_wakeup_fd(
            self._wake_writer.fileno()
        )  # else a signal just before poll would wait for a frame
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_told_to_end = True

    def _keep_house(self) -> None:
        for segment in self._segments.values():
            segment.forget_old()
        totals = self._totals()
        if totals["frames"] != self._told:
            self._told = totals["frames"]
            _log.info("carried", **totals)

    def _totals(self) -> dict[str, int]:
        counters = [segment.counters for segment in self._segments.values()]
        return {
            "frames": sum(one.frames for one in counters),
            "lost": sum(one.lost for one in counters),
            "malformed": sum(one.malformed for one in counters),
            "strangers": self._strangers,
        }


def _lock(directory: Path) -> int:
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AlreadyRunning(str(directory)) from error
    return descriptor


def _bind_uplink(config: Config) -> socket.socket:
    uplink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        uplink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER_BYTES)
        uplink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UDP_BUFFER_BYTES)
        uplink.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        uplink.bind(config.address)
    except OSError as error:
        uplink.close()
        raise SocketUnusable("{}:{}".format(*config.address), str(error)) from error
    return uplink

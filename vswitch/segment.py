"""One port group on this host: the socket that its VMs send to, their ports, and the way to the other hosts.

    <dir>/<segment id>/switch.sock                 ours: QEMU sends every frame here
                       <vm>-<nic>.sock             QEMU's own: we send there
                       ports                       the ports we know, for a switch that comes after us

A port is known from the first frame that came from it, and not before: a VM that is only being received from another
host has its socket already, and must get nothing until it runs here and says so. A switch that was killed has left the
list of known ports, so that its successor reaches VMs that are silent.
"""

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from vswitch.errors import SocketUnusable
from vswitch.frames import FRAME_MAX_BYTES, is_acceptable, mac_text, vxlan_header
from vswitch.port import Port, Sent, is_port_name
from vswitch.table import Learned, LearningSwitch, Way

MAX_PORTS = 1000
SWITCH_SOCKET = "switch.sock"
PORTS_FILE = "ports"
_PORTS_FILE_MAX_BYTES = 1 << 20
_MOVES_LOGGED_PER_S = 20
# Frames taken from one socket before the others' turn.
TURN_FRAMES = 64

_log = structlog.get_logger(__name__)


class Peer(Way):
    """The switch of another host."""

    is_peer = True

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(f"{address[0]}:{address[1]}")
        self.address = address


@dataclass
class Counters:
    """What was carried and what wasn't, since the start."""

    frames: int = 0
    malformed: int = 0
    lost: int = 0


@dataclass(frozen=True)
class Outside:
    """What a segment needs of its process: `send` a VXLAN datagram; `watch`/`unwatch` a port that is full."""

    send: Callable[[bytes, Peer], bool]
    watch: Callable[[Port, "Segment"], None]
    unwatch: Callable[[Port], None]


class Segment:
    """Frames of one port group. :raises SocketUnusable: on making it."""

    def __init__(self, directory: Path, segment_id: int, peers: list[Peer], outside: Outside) -> None:
        self.segment_id = segment_id
        self.counters = Counters()
        self._directory = directory / str(segment_id)
        self._prefix = f"{self._directory}/"
        self._header = vxlan_header(segment_id)
        self._outside = outside
        self._switch = LearningSwitch()
        self._ports: dict[str, Port] = {}
        self._moves_logged = 0
        self._moves_second = 0
        for peer in peers:
            self._switch.add(peer)
        self.socket = self._bind()
        self._recall_ports()

    def close(self) -> None:
        """Let go of all sockets; their files stay for the successor to replace."""
        for port in self._ports.values():
            port.close()
        self.socket.close()

    # ---- frames

    def take_from_ports(self) -> None:
        """The VMs have sent something: carry up to one turn's frames."""
        receive, now_s = self.socket.recvfrom, time.monotonic()
        for _ in range(TURN_FRAMES):
            try:
                frame, address = receive(FRAME_MAX_BYTES + 1)
            except BlockingIOError:
                return
            if not is_acceptable(frame):
                self.counters.malformed += 1
                continue
            port = self._ports.get(address) or self._learn_port(address)
            if port is None:
                self.counters.malformed += 1
                continue
            self._carry(frame, port, now_s)

    def take_from_peer(self, frame: bytes, peer: Peer) -> None:
        """A peer has sent this, in this segment."""
        if not is_acceptable(frame):
            self.counters.malformed += 1
            return
        self._carry(frame, peer, time.monotonic())

    def flush(self, port: Port) -> None:
        """The port takes frames again."""
        sent = port.flush()
        if sent is Sent.DEAD:
            self._forget_port(port)
        elif sent is Sent.DONE:
            self._outside.unwatch(port)

    def forget_old(self) -> None:
        """Once in a while: what wasn't heard of for long."""
        count = self._switch.forget_old(time.monotonic())
        if count:
            _log.info("addresses_aged", segment=self.segment_id, count=count)

    def _carry(self, frame: bytes, ingress: Way, now_s: float) -> None:
        learned = self._switch.learn(frame[6:12], ingress, now_s)
        if learned is not Learned.KNOWN:
            ingress = self._note_learned(learned, frame[6:12], ingress, now_s)
        self.counters.frames += 1
        for way in self._switch.ways_for(frame[:6], ingress, now_s):
            if isinstance(way, Peer):
                if not self._outside.send(self._header + frame, way):
                    self.counters.lost += 1
            elif isinstance(way, Port):
                self._give(frame, way)

    def _give(self, frame: bytes, port: Port) -> None:
        sent = port.send(frame)
        if sent is Sent.WAITING:
            self._outside.watch(port, self)
        elif sent is Sent.LOST:
            self.counters.lost += 1
        elif sent is Sent.DEAD:
            self._forget_port(port)

    def _note_learned(self, learned: Learned, mac: bytes, way: Way, now_s: float) -> Way:
        """An address that is new on a way; answers the way, which is another one if its port was replaced."""
        if isinstance(way, Port) and not way.is_current:
            # A VM that came back: its new QEMU has bound the path of the old one's.
            self._forget_port(way)
            renewed = self._learn_port(f"{self._prefix}{way.name}")
            if renewed is not None:
                way = renewed
                self._switch.learn(mac, way, now_s)
        if int(now_s) != self._moves_second:
            self._moves_second, self._moves_logged = int(now_s), 0
        self._moves_logged += 1
        if self._moves_logged <= _MOVES_LOGGED_PER_S:  # a guest can make as many as it likes
            event = f"address_{learned.value}"
            _log.info(event, segment=self.segment_id, mac=mac_text(mac), way=way.name, is_peer=way.is_peer)
        return way

    # ---- ports

    def _bind(self) -> socket.socket:
        path = self._directory / SWITCH_SOCKET
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            opened.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            opened.close()
            raise SocketUnusable(str(path), str(error)) from error
        return opened

    def _learn_port(self, address: object) -> Port | None:
        """The port at the address that a frame came from; None: that is no port of ours."""
        if not isinstance(address, str) or not address.startswith(self._prefix):
            return None
        name = address.removeprefix(self._prefix)
        if not is_port_name(name) or len(self._ports) >= MAX_PORTS:
            return None
        port = self._add_port(name)
        if port is not None:
            _log.info("port_learned", segment=self.segment_id, port=name)
            self._save_ports()
        return port

    def _add_port(self, name: str) -> Port | None:
        try:
            port = Port(self._directory / name)
        except OSError as error:  # it has ended meanwhile
            _log.info("port_gone", segment=self.segment_id, port=name, reason=str(error))
            return None
        self._ports[f"{self._prefix}{name}"] = port
        self._switch.add(port)
        return port

    def _forget_port(self, port: Port) -> None:
        if self._ports.pop(f"{self._prefix}{port.name}", None) is not port:
            return
        self._outside.unwatch(port)
        self._switch.remove(port)
        port.close()
        _log.info("port_forgotten", segment=self.segment_id, port=port.name)
        self._save_ports()

    def _save_ports(self) -> None:
        """For a successor. Lost in a crash of the machine, as the VMs are: nothing is synced."""
        text = "".join(f"{port.name} {port.identity}\n" for port in self._ports.values())
        temporary = self._directory / f".{PORTS_FILE}.tmp"
        try:
            temporary.write_text(text, encoding="ascii")
            os.replace(temporary, self._directory / PORTS_FILE)
        except OSError as error:  # frames go on; only a successor would know less
            _log.warning("ports_not_saved", segment=self.segment_id, reason=str(error))

    def _recall_ports(self) -> None:
        """Ports that a predecessor knew and that are still the same."""
        try:
            with open(self._directory / PORTS_FILE, "rb") as file:
                lines = file.read(_PORTS_FILE_MAX_BYTES).decode("ascii", "replace").splitlines()
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("ports_not_recalled", segment=self.segment_id, reason=str(error))
            return
        for line in lines[:MAX_PORTS]:
            name, _, identity = line.partition(" ")
            port = self._add_port(name) if is_port_name(name) else None
            if port is not None and port.identity != identity:
                self._forget_port(port)
        _log.info("ports_recalled", segment=self.segment_id, count=len(self._ports))

"""Real virtual switches for tests, each a process as hostd starts it, and stations that are plugged into them as QEMU
is: a unix datagram socket that sends to the switch's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from demo.cluster_layout import BlockReservation

ROOT = Path(__file__).resolve().parents[2]
BROADCAST = "ff:ff:ff:ff:ff:ff"
PORT = 4789
_READY_S = 10.0
_ARRIVES_S = 5.0
# Long enough for a frame that wrongly comes, on a busy machine, to have come.
_SILENCE_S = 0.3


class SwitchHost:
    """One host's switch. `number` is its address's last byte."""

    def __init__(
        self, directory: Path, block: int, number: int, peers: tuple[int, ...], segments: str
    ) -> None:
        self.directory = directory / str(number)
        self.address = (f"127.0.{10 * block + 3}.{number}", PORT)
        self.environment = {
            **os.environ,
            "VSWITCH_HOST_NAME": f"esx{number:02}",
            "VSWITCH_DIR": str(self.directory),
            "VSWITCH_SEGMENTS": segments,
            "VSWITCH_ADDRESS": "{}:{}".format(*self.address),
            "VSWITCH_PEERS": ",".join(f"127.0.{10 * block + 3}.{peer}:{PORT}" for peer in peers),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it has its sockets."""
        self.directory.mkdir(exist_ok=True)
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vswitch"], env=self.environment, cwd=ROOT, stderr=log
            )
        deadline_s = time.monotonic() + _READY_S
        while not self._is_ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        assert self.process is not None
        with suppress(FileNotFoundError, IndexError):
            return (self.directory / "vswitch.pid").read_text().split()[0] == str(self.process.pid)
        return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; answers its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text()

    def segment(self, segment_id: int = 100) -> Path:
        """The folder of a port group's sockets."""
        return self.directory / str(segment_id)


class Station:
    """One VM's NIC on a host's switch."""

    def __init__(self, host: SwitchHost, number: int, segment_id: int = 100, vm: int | None = None) -> None:
        folder = host.segment(segment_id)
        self.mac = f"02:00:00:00:00:{number:02x}"
        self.port = folder / f"{vm if vm is not None else number:08x}-0000-4000.sock"
        self._switch = str(folder / "switch.sock")
        self.port.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.port))

    def send(self, destination: str, text: bytes = b"", kind: int = 0x88B5) -> bytes:
        """Sends a frame; answers it."""
        frame = mac_bytes(destination) + mac_bytes(self.mac) + kind.to_bytes(2, "big") + text.ljust(46, b"\0")
        self.socket.sendto(frame, self._switch)
        return frame

    def send_raw(self, frame: bytes) -> None:
        """Sends anything."""
        self.socket.sendto(frame, self._switch)

    def receive(self) -> bytes:
        """The next frame. :raises TimeoutError: none came."""
        self.socket.settimeout(_ARRIVES_S)
        return self.socket.recv(70000)

    def hears_nothing(self) -> bool:
        """Whether no frame comes for a while."""
        self.socket.settimeout(_SILENCE_S)
        try:
            self.socket.recv(70000)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        """As when QEMU ends: the socket's file stays."""
        self.socket.close()


class SwitchRig:
    """Hosts with switches, all of them peers."""

    def __init__(self, directory: Path, block: int, count: int, segments: str, strangers: int) -> None:
        numbers = tuple(range(1, count + strangers + 1))
        self.hosts = [SwitchHost(directory, block, number, numbers, segments) for number in numbers[:count]]
        self.outside = [(f"127.0.{10 * block + 3}.{number}", PORT) for number in numbers[count:]]
        self.stranger = (f"127.0.{10 * block + 3}.200", PORT)
        self._stations: list[Station] = []

    def station(self, host: int, number: int, segment_id: int = 100, vm: int | None = None) -> Station:
        """A NIC plugged in on the host (from 1); it has said nothing yet."""
        made = Station(self.hosts[host - 1], number, segment_id, vm)
        self._stations.append(made)
        return made

    def talkative(self, host: int, number: int, segment_id: int = 100) -> Station:
        """A NIC whose port the switch knows."""
        made = self.station(host, number, segment_id)
        ports = self.hosts[host - 1].segment(segment_id) / "ports"
        deadline_s = time.monotonic() + _ARRIVES_S
        made.send("02:00:00:00:ff:ff", b"hello")  # nobody's address: it goes to all who are known
        while not ports.exists() or made.port.name not in ports.read_text():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        for other in self._stations:
            other.socket.setblocking(False)
            with suppress(BlockingIOError):
                while b"hello" in other.socket.recv(2000):
                    pass
            other.socket.settimeout(_ARRIVES_S)
        return made

    def close(self) -> None:
        """Ends all that was started."""
        for station in self._stations:
            station.close()
        for host in self.hosts:
            if host.process is not None:
                host.stop(signal.SIGKILL)


@contextmanager
def switch_rig(count: int = 1, segments: str = "100", outsiders: int = 0) -> Iterator[SwitchRig]:
    """Running switches; afterwards nothing of them runs. `outsiders` are peers that are no switches of ours."""
    directory = Path(tempfile.mkdtemp(prefix="vs", dir="/tmp"))
    with BlockReservation() as block:
        rig = SwitchRig(directory, block.block, count, segments, outsiders)
        try:
            for host in rig.hosts:
                host.start()
            yield rig
        finally:
            rig.close()
            shutil.rmtree(directory, ignore_errors=True)


def mac_bytes(mac: str) -> bytes:
    """The six bytes."""
    return bytes.fromhex(mac.replace(":", ""))

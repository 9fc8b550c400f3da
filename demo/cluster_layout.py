"""Where a local cluster keeps what: addresses, ports, folders, and the environment of each daemon.

    <dir>/                              <short run folder, /tmp/vpx-<uid>-<hash of dir>>/
      state.json   processes              esx01/   hostd.sock, <vm>/vmx.sock, ...
      client/      client.json, keys      esx02/
      vpxd/        database, CA
      esx01/       hostd's and vpxa's own state
      datastores/shared, datastores/esx01-local, ...
      logs/        vpxd.log, esx01-vpxa.log, esx01-hostd.log, ...

Unix sockets have at most 107 characters, hence the short run folder. All of 127.0.0.0/8 is loopback, so each host
has an address of its own on each network: block k has 127.0.(10k+1).N for management, 127.0.(10k+2).N for vMotion,
127.0.(10k+3).N for the frames of VMs between the hosts.
Block 0 is `make up`'s, 1 the demonstration's, and tests take others, so that clusters run beside each other.
"""

import hashlib
import os
import random
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_DIRECTORY = PROJECT / "out" / "cluster"
DEFAULT_PORTS = (7443, 7444)
MANAGEMENT_PORT = 8443
MAX_HOSTS = 200
MAX_BLOCK = 25
VPXD = "vpxd"
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_FREE_PORT = 20_000
_OWN_PREFIXES = ("VPXD_", "HOST_", "HOSTD_", "VMX_", "VPX_")


@dataclass(frozen=True)
class Daemon:
    """One process of the cluster: `listens` are addresses that must be free before it starts."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    listens: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ClusterLayout:
    """A cluster's whole plan; equal plans make the same cluster.

    `cpu_generations`: the EVC baselines of the older machines that the hosts pretend to be, in their order; an empty
    one, or none: the host is what it is.
    """

    directory: Path
    host_count: int = 3
    block: int = 0
    vpxd_port: int = DEFAULT_PORTS[0]
    join_port: int = DEFAULT_PORTS[1]
    host_settings: tuple[tuple[str, str], ...] = ()
    vpxd_settings: tuple[tuple[str, str], ...] = ()
    cpu_generations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """:raises ValueError: the numbers can't be."""
        if not 1 <= self.host_count <= MAX_HOSTS:
            raise ValueError(f"a local cluster has 1 to {MAX_HOSTS} hosts, not {self.host_count}")
        if not 0 <= self.block <= MAX_BLOCK:
            raise ValueError(f"blocks are numbered 0 to {MAX_BLOCK}, not {self.block}")
        if "," in str(self.directory) or "=" in str(self.directory):
            raise ValueError(f"the folder's name can't hold ',' or '=': {self.directory}")

    @property
    def host_names(self) -> tuple[str, ...]:
        return tuple(f"esx{number:02}" for number in range(1, self.host_count + 1))

    @property
    def run_directory(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:8]
        # Not $TMPDIR: `down` must find the folder whatever the environment of `up` was.
        return Path("/tmp") / f"vpx-{os.getuid()}-{digest}"

    @property
    def client_directory(self) -> Path:
        return self.directory / "client"

    @property
    def state_file(self) -> Path:
        return self.directory / "state.json"

    @property
    def log_directory(self) -> Path:
        return self.directory / "logs"

    @property
    def shared_datastore(self) -> Path:
        return self.directory / "datastores" / "shared"

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.vpxd_port}"

    def management_address(self, number: int) -> str:
        """Of host `number`, from 1."""
        return f"127.0.{10 * self.block + 1}.{number}"

    def vmotion_address(self, number: int) -> str:
        """Of host `number`, from 1."""
        return f"127.0.{10 * self.block + 2}.{number}"

    def switch_address(self, number: int) -> str:
        """Of the virtual switch of host `number`, from 1."""
        return f"127.0.{10 * self.block + 3}.{number}"

    def host_run_directory(self, name: str) -> Path:
        return self.run_directory / name

    def hostd_socket(self, name: str) -> Path:
        return self.host_run_directory(name) / "hostd.sock"

    def has_joined(self, name: str) -> bool:
        """Whether the host has its certificate."""
        return (self.directory / name / "vpxa" / "identity" / "cert.pem").is_file()

    def local_datastore(self, name: str) -> Path:
        return self.directory / "datastores" / f"{name}-local"

    def folders(self) -> list[Path]:
        """All folders below `directory` that the cluster needs."""
        local = [self.local_datastore(name) for name in self.host_names]
        own = [self.directory / name for name in (VPXD, *self.host_names)]
        return [self.log_directory, self.client_directory, self.shared_datastore, *local, *own]

    def vpxd(self) -> Daemon:
        """vpxd's process."""
        environment = {
            "VPXD_STATE_DIR": str(self.directory / VPXD),
            "VPXD_LISTEN": self.server,
            "VPXD_JOIN_LISTEN": f"127.0.0.1:{self.join_port}",
            "VPXD_CLIENT_DIR": str(self.client_directory),
            **dict(self.vpxd_settings),
        }
        listens = (("127.0.0.1", self.vpxd_port), ("127.0.0.1", self.join_port))
        return Daemon(VPXD, (sys.executable, "-m", "vpxd"), _environment(environment), listens)

    def host_daemons(self, number: int) -> tuple[Daemon, Daemon]:
        """hostd and vpxa of host `number`; they share one environment."""
        name, environment = self.host_names[number - 1], self.host_environment(number)
        listens = ((self.management_address(number), MANAGEMENT_PORT),)
        return (
            Daemon(f"{name}-hostd", (sys.executable, "-m", "hostd"), environment, ()),
            Daemon(f"{name}-vpxa", (sys.executable, "-m", "vpxa"), environment, listens),
        )

    def host_environment(self, number: int) -> dict[str, str]:
        """Of host `number`'s daemons, and of `python -m vpxa join`."""
        name = self.host_names[number - 1]
        stores = f"shared={self.shared_datastore},local={self.local_datastore(name)}"
        return _environment(
            {
                "HOST_NAME": name,
                "HOST_STATE_DIR": str(self.directory / name),
                "HOST_RUN_DIR": str(self.host_run_directory(name)),
                "HOST_MANAGEMENT_ADDRESS": self.management_address(number),
                "HOST_MANAGEMENT_PORT": str(MANAGEMENT_PORT),
                "HOST_VMOTION_ADDRESS": self.vmotion_address(number),
                "HOST_DATASTORES": stores,
                "HOST_VSWITCH_ADDRESS": self.switch_address(number),
                "HOST_VSWITCH_PEERS": ",".join(map(self.switch_address, range(1, self.host_count + 1))),
                "HOST_CPU_GENERATION": "".join(self.cpu_generations[number - 1 : number]),
                **dict(self.host_settings),
            }
        )

    def daemons(self) -> list[Daemon]:
        """All processes, in the order of their start."""
        hosts = [daemon for n in range(1, self.host_count + 1) for daemon in self.host_daemons(n)]
        return [self.vpxd(), *hosts]


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of daemons, and `own`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_PREFIXES)}
    return {**inherited, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **own}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together while they are chosen, so that they differ.

    They lie below those that the kernel gives to outgoing connections (ip(7), ip_local_port_range): one of these could
    take the port of a daemon that is away for a moment.
    """
    first_outgoing = int(_PORT_RANGE.read_text(encoding="ascii").split()[0])
    candidates = range(min(_FIRST_FREE_PORT, first_outgoing - 1), first_outgoing)
    sockets: list[socket.socket] = []
    try:
        for port in random.sample(candidates, len(candidates)):
            if len(sockets) == count:
                break
            one = socket.socket()
            sockets.append(one)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                sockets.pop().close()
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class BlockReservation:
    """A block of addresses kept for this process's life (or until `close`), among all processes of the machine.

    The token is an abstract unix socket (unix(7)): it leaves no file and is free as soon as its holder is gone.
    """

    def __init__(self, first: int = 2) -> None:
        """:raises OSError: every block is taken."""
        for block in range(first, MAX_BLOCK + 1):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.bind(f"\0vpx-local-cluster-block-{block}")
            except OSError:
                self._socket.close()
                continue
            self.block = block
            return
        raise OSError(f"all blocks of addresses up to {MAX_BLOCK} are in use")

    def layout(self, directory: Path, host_count: int = 3) -> ClusterLayout:
        """A layout with this block and with ports that are free now."""
        vpxd_port, join_port = free_ports(2)
        return ClusterLayout(directory, host_count, self.block, vpxd_port, join_port)

    def close(self) -> None:
        """Lets go of the block."""
        self._socket.close()

    def __enter__(self) -> "BlockReservation":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

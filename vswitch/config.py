"""The switch's settings, read from the environment here and nowhere else. hostd gives them.

VSWITCH_DIR          the directory of all its sockets: short, because a socket's address has 107 bytes at most
VSWITCH_SEGMENTS     segment ids: "100,200"
VSWITCH_ADDRESS      "127.0.1.1:4789", the own end of the tunnels (0 as port: any; for tests)
VSWITCH_PEERS        the other switches' ends: "127.0.1.2:4789,127.0.1.3:4789"
VSWITCH_HOST_NAME, LOG_JSON
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.daemon.settings import Settings, SettingsError
from vswitch.frames import VNI_MAX

Address = tuple[str, int]

# "/" segment id "/" 13 characters of a uuid "-" key ".sock"
_PATH_RESERVE_BYTES = 34
_SOCKET_PATH_MAX_BYTES = 107


@dataclass(frozen=True)
class Config:
    """All of it. Two peers never have one IP address: a frame's sender is known by it."""

    host_name: str
    directory: Path
    segment_ids: tuple[int, ...]
    address: Address
    peers: tuple[Address, ...]
    log_json: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """:raises SettingsError: a setting is missing or can't be; it names the variable."""
        settings = Settings(environment)
        directory = settings.path("VSWITCH_DIR")
        if len(str(directory).encode()) + _PATH_RESERVE_BYTES > _SOCKET_PATH_MAX_BYTES:
            raise SettingsError("VSWITCH_DIR", "is too long: unix sockets are made below it")
        peers = tuple(_address("VSWITCH_PEERS", text) for text in settings.entries("VSWITCH_PEERS", ()))
        if len({host for host, _ in peers}) != len(peers):
            raise SettingsError("VSWITCH_PEERS", "has an address twice")
        return cls(
            host_name=settings.text("VSWITCH_HOST_NAME"),
            directory=directory,
            segment_ids=_segment_ids(settings.entries("VSWITCH_SEGMENTS")),
            address=_address("VSWITCH_ADDRESS", settings.text("VSWITCH_ADDRESS")),
            peers=peers,
            log_json=settings.flag("LOG_JSON"),
        )


def _segment_ids(entries: tuple[str, ...]) -> tuple[int, ...]:
    found = tuple(int(entry) if entry.isascii() and entry.isdigit() else 0 for entry in entries)
    if not found or len(set(found)) != len(found) or not all(0 < number <= VNI_MAX for number in found):
        raise SettingsError("VSWITCH_SEGMENTS", f"must be different numbers from 1 to {VNI_MAX}")
    return found


def _address(variable: str, text: str) -> Address:
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.IPv4Address(host)
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= 65535 or address.is_multicast:
        raise SettingsError(variable, f'must be "IPv4 address:port", not {text!r}')
    return str(address), number

"""vpxd's settings, read from the environment once.

VPXD_STATE_DIR             database, certificate authority, identities
VPXD_LISTEN                where clients call, mutual TLS (127.0.0.1:7443)
VPXD_JOIN_LISTEN           where hosts join (127.0.0.1:7444)
VPXD_ADVERTISE             what joining hosts are told, "address:port" (VPXD_JOIN_LISTEN)
VPXD_CERTIFICATE_ADDRESSES further addresses in vpxd's certificate, "a,b": published ports, names in a DNS ("")
VPXD_CLIENT_DIR            the administrator's certificate and client.json (<state>/clients/admin)
VPXD_DATABASE_URL          SQLAlchemy's URL (sqlite+aiosqlite, <state>/vpxd.sqlite)
VPXD_VMOTION_LINK_GBPS     what a vMotion link carries, Gb/s: below 10, 4 migrations a host instead of 8 (10)
VPXD_HEARTBEAT_TIMEOUT_S   silence after which a host counts as not responding (5)
LOG_JSON                   1: log lines as JSON
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from runtime.daemon.settings import Settings


@dataclass(frozen=True)
class Config:
    """The settings of one vpxd. The heartbeat is what hosts are asked for: several fit into the timeout."""

    state_dir: Path
    listen: str
    join_listen: str
    advertise: str
    client_dir: Path
    database_url: str
    heartbeat_timeout_s: float = 5.0
    stop_grace_s: float = 5.0
    log_json: bool = False
    certificate_addresses: tuple[str, ...] = ()
    vmotion_link_gbps: float = 10.0

    @property
    def heartbeat_s(self) -> float:
        """The longest silence that hosts are asked to keep."""
        return min(1.0, self.heartbeat_timeout_s / 4)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """:raises SettingsError: a setting is missing or can't be; names the variable."""
        settings = Settings(environment)
        state_dir = settings.path("VPXD_STATE_DIR")
        join_listen = settings.address("VPXD_JOIN_LISTEN", "127.0.0.1:7444")
        return cls(
            state_dir=state_dir,
            listen=settings.address("VPXD_LISTEN", "127.0.0.1:7443"),
            join_listen=join_listen,
            advertise=settings.address("VPXD_ADVERTISE", join_listen),
            client_dir=settings.path("VPXD_CLIENT_DIR", state_dir / "clients" / "admin"),
            database_url=settings.text(
                "VPXD_DATABASE_URL", f"sqlite+aiosqlite:///{state_dir / 'vpxd.sqlite'}"
            ),
            heartbeat_timeout_s=settings.number("VPXD_HEARTBEAT_TIMEOUT_S", 5.0, minimum=0.2, maximum=600.0),
            log_json=settings.flag("LOG_JSON"),
            certificate_addresses=settings.entries("VPXD_CERTIFICATE_ADDRESSES", ()),
            vmotion_link_gbps=settings.number("VPXD_VMOTION_LINK_GBPS", 10.0, minimum=0.1, maximum=1000.0),
        )

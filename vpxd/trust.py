"""Who vpxd is: the cluster's certificate authority, vpxd's own identity, and the administrator's client identity.

The first start makes all three. Later starts renew a certificate that ends soon and write client.json again, because
the address may have changed.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from runtime.faults import CannotAccessFile, FileNotFound, InvalidArgument
from runtime.ondisk.durable import write_durably
from runtime.rpc.identity import ClusterAuthority, Identity, Role
from vpxd.config import Config

_log = structlog.get_logger(__name__)
CLUSTER_NAME = "vpx cluster"
VPXD_NAME = "vpxd"
_RENEW_BEFORE = timedelta(days=60)
_EVERY_ADDRESS = ("0.0.0.0", "[::]", "::")


@dataclass(frozen=True)
class Trust:
    """The authority and vpxd's identity."""

    authority: ClusterAuthority
    identity: Identity


def establish(config: Config) -> Trust:
    """Loads what is there and makes what is missing. Blocking.

    :raises CannotAccessFile: the authority is there but can't be read: never replaced, its hosts would be lost.
    """
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = ClusterAuthority.load_or_create(config.state_dir / "ca", CLUSTER_NAME)
    told = (config.listen, config.advertise, *config.certificate_addresses)
    addresses = [address for address in told if _host(address) not in _EVERY_ADDRESS]
    identity = _identity(authority, config.state_dir / "identity", Role.VPXD, VPXD_NAME, addresses)
    _identity(authority, config.client_dir, Role.CLIENT, "admin", [])
    return Trust(authority, identity)


def write_client_settings(config: Config, address: str) -> None:
    """client.json beside the administrator's certificate: where vpxd listens and how to know it. Blocking."""
    host, _, port = address.rpartition(":")
    if host in _EVERY_ADDRESS:
        host = "127.0.0.1"
    reachable = f"{host}:{port}"
    settings = {
        "address": reachable,
        "server": reachable,
        "server_name": VPXD_NAME,
        "identity": ".",
        "ca": "ca.pem",
    }
    write_durably(config.client_dir / "client.json", json.dumps(settings).encode() + b"\n")


def _identity(
    authority: ClusterAuthority, directory: Path, role: Role, name: str, addresses: list[str]
) -> Identity:
    try:
        identity = Identity.load(directory)
    except (FileNotFound, InvalidArgument, CannotAccessFile) as fault:
        _log.info("identity_made", role=role.value, name=name, why=type(fault).__name__)
    else:
        same = identity.ca_pem == authority.certificate_pem and identity.role is role
        if same and identity.not_after - datetime.now(UTC) > _RENEW_BEFORE:
            return identity
        _log.info("identity_renewed", role=role.value, name=name)
    identity = authority.new_identity(role, name, addresses)
    identity.save(directory)
    return identity


def _host(address: str) -> str:
    return address.rpartition(":")[0]

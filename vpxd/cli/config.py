"""Where vpxd is and who we are: client.json, beside the client's key.pem, cert.pem and ca.pem.

    {"server": "127.0.0.1:7443", "server_name": "vpxd"}

vpxd writes the folder for its administrator at its first start; `server_name` (default "vpxd") is the name in vpxd's
certificate, `identity` (default: the file's own folder) the folder with the three PEM files.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.faults import VimFault
from runtime.ondisk.durable import read_bounded
from vpxd.cli.errors import NoConfiguration

CONFIG_VARIABLE = "VPX_CONFIG"
FILE_NAME = "client.json"
_MAX_BYTES = 64 * 1024
_PROJECT = Path(__file__).resolve().parents[2]
LOCAL_CLUSTER_CONFIG = _PROJECT / "out" / "cluster" / "client" / FILE_NAME
_HINT = (
    "Start the local cluster (make up), or name the file with --config or $VPX_CONFIG; "
    "vpxd writes it at its first start into its client folder."
)


@dataclass(frozen=True)
class ClientConfig:
    """`server` is "address:port"; `server_name` the name that vpxd's certificate must have."""

    server: str
    server_name: str
    identity_directory: Path


def find_config(
    explicit: Path | None, environment: Mapping[str, str], local: Path = LOCAL_CLUSTER_CONFIG
) -> Path:
    """The file to use: --config, else $VPX_CONFIG, else the local cluster's, else ~/.config/vpx/client.json.

    :raises NoConfiguration: none of them is there, or the one that was named isn't.
    """
    if explicit is not None:
        return _present(explicit, "--config")
    named = environment.get(CONFIG_VARIABLE)
    if named:
        return _present(Path(named), f"${CONFIG_VARIABLE}")
    base = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "/")) / ".config")
    candidates = (local, Path(base) / "vpx" / FILE_NAME)
    for path in candidates:
        if path.is_file():
            return path
    places = " or ".join(str(path) for path in candidates)
    raise NoConfiguration(f"There is no client configuration: not in {places}.", _HINT)


def load_config(path: Path) -> ClientConfig:
    """Reads client.json; a folder stands for the file in it.

    :raises NoConfiguration: it can't be read or isn't one.
    """
    path = path.resolve()  # a link to the file is as good as the file
    if path.is_dir():
        path = path / FILE_NAME
    try:
        content = json.loads(read_bounded(path, _MAX_BYTES))
    except (VimFault, ValueError, RecursionError) as error:
        raise NoConfiguration(f"{path} can't be read as a client configuration: {error}", _HINT) from error
    if not isinstance(content, dict):
        raise NoConfiguration(f"{path} isn't a client configuration: a JSON object is expected.", _HINT)
    server = _text(content, "server", path)
    host, _, port = server.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise NoConfiguration(f'{path}: "server" must be "address:port", not {server[:80]!r}.', _HINT)
    directory = path.parent / _text(content, "identity", path, ".")
    return ClientConfig(server, _text(content, "server_name", path, "vpxd"), directory)


def config_from_environment(explicit: Path | None = None) -> ClientConfig:
    """find_config and load_config with this process's environment.

    :raises NoConfiguration: see there.
    """
    return load_config(find_config(explicit, os.environ))


def _present(path: Path, source: str) -> Path:
    if not path.exists():
        raise NoConfiguration(f"There is no file {path} (named by {source}).", _HINT)
    return path


def _text(content: Mapping[str, object], key: str, path: Path, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise NoConfiguration(f'{path}: "{key}" must be a text.', _HINT)
    return value

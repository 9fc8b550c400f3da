"""Where the client finds its configuration."""

import json
from pathlib import Path

import pytest

from vpxd.cli.config import find_config, load_config
from vpxd.cli.errors import NoConfiguration


def _write(path: Path, content: object = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"server": "127.0.0.1:7443"} if content is None else content))
    return path


def test_find_config_order_is_option_variable_local_cluster_home(tmp_path: Path) -> None:
    option, variable = _write(tmp_path / "option.json"), _write(tmp_path / "variable.json")
    local, home = tmp_path / "out" / "client.json", tmp_path / "home"
    environment = {"VPX_CONFIG": str(variable), "HOME": str(home)}
    assert find_config(option, environment, local) == option
    assert find_config(None, environment, local) == variable
    del environment["VPX_CONFIG"]
    in_home = _write(home / ".config" / "vpx" / "client.json")
    assert find_config(None, environment, local) == in_home
    _write(local)
    assert find_config(None, environment, local) == local


def test_find_config_named_file_missing_doesnt_fall_back(tmp_path: Path) -> None:
    local = _write(tmp_path / "local.json")
    with pytest.raises(NoConfiguration, match="--config"):
        find_config(tmp_path / "none.json", {}, local)
    with pytest.raises(NoConfiguration, match="VPX_CONFIG"):
        find_config(None, {"VPX_CONFIG": str(tmp_path / "none.json")}, local)


def test_find_config_nothing_there_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(NoConfiguration, match=r"client\.json"):
        find_config(None, {"HOME": str(tmp_path)}, tmp_path / "local.json")


def test_load_config_folder_stands_for_its_file(tmp_path: Path) -> None:
    _write(tmp_path / "client.json", {"server": "[::1]:7443", "server_name": "vc", "identity": "keys"})
    config = load_config(tmp_path)
    assert (config.server, config.server_name) == ("[::1]:7443", "vc")
    assert config.identity_directory == tmp_path / "keys"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"server": 7}',
        '{"server": "nowhere"}',
        '{"server": "h:0"}',
        '{"server": "h:99999"}',
        '{"server": "h:1", "server_name": ""}',
        '{"server": "h:1", "identity": "a\\u0000b"}',
        "[" * 100_000,
        "x" * 100_000,
    ],
)
def test_load_config_bad_content_is_refused_with_the_files_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "client.json"
    path.write_text(text)
    with pytest.raises(NoConfiguration, match=r"client\.json"):
        load_config(path)

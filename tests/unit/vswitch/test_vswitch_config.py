"""The switch's settings: taken as they are meant, or refused by the variable's name."""

import pytest

from runtime.daemon.settings import SettingsError
from vswitch.config import Config

GOOD = {
    "VSWITCH_DIR": "/run/vpx/net",
    "VSWITCH_SEGMENTS": "100,200",
    "VSWITCH_ADDRESS": "127.0.1.1:4789",
    "VSWITCH_PEERS": "127.0.1.2:4789,127.0.1.3:5000",
    "VSWITCH_HOST_NAME": "esx01",
}


def test_settings_are_read() -> None:
    config = Config.from_environment(GOOD)
    assert config.segment_ids == (100, 200)
    assert config.address == ("127.0.1.1", 4789)
    assert config.peers == (("127.0.1.2", 4789), ("127.0.1.3", 5000))


def test_host_without_peers_is_a_switch_of_its_own() -> None:
    assert Config.from_environment({**GOOD, "VSWITCH_PEERS": ""}).peers == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VSWITCH_DIR", "net"),
        ("VSWITCH_DIR", "/" + "x" * 80),
        ("VSWITCH_SEGMENTS", ""),
        ("VSWITCH_SEGMENTS", "0"),
        ("VSWITCH_SEGMENTS", "16777216"),
        ("VSWITCH_SEGMENTS", "100,100"),
        ("VSWITCH_SEGMENTS", "one"),
        ("VSWITCH_ADDRESS", "localhost:4789"),
        ("VSWITCH_ADDRESS", "127.0.0.1:65536"),
        ("VSWITCH_ADDRESS", "239.0.0.1:4789"),
        ("VSWITCH_PEERS", "127.0.1.2"),
        ("VSWITCH_PEERS", "127.0.1.2:1,127.0.1.2:2"),
        ("VSWITCH_HOST_NAME", ""),
    ],
)
def test_bad_setting_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Config.from_environment({**GOOD, variable: value})
    assert caught.value.variable == variable

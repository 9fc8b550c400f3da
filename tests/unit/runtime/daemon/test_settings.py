"""Settings: typed reads; errors name the variable."""

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.daemon.settings import Settings, SettingsError


def test_settings_reads_typed_values() -> None:
    settings = Settings(
        {
            "NAME": "esx01",
            "PORT": "8443",
            "TIMEOUT_S": "2.5",
            "DIR": "/run/x",
            "LIST": "a, b,,c",
            "STORES": "shared=/a,local=/b",
            "JSON": "1",
            "ADDRESS": "[::1]:0",
        }
    )
    assert settings.text("NAME") == "esx01"
    assert settings.integer("PORT", maximum=65535) == 8443
    assert settings.number("TIMEOUT_S") == 2.5
    assert settings.path("DIR") == Path("/run/x")
    assert settings.entries("LIST") == ("a", "b", "c")
    assert settings.paths_by_name("STORES") == {"shared": Path("/a"), "local": Path("/b")}
    assert settings.flag("JSON") is True
    assert settings.address("ADDRESS") == "[::1]:0"
    assert settings.choice("NAME", ("esx01", "esx02")) == "esx01"


def test_settings_absent_or_empty_takes_the_default() -> None:
    settings = Settings({"EMPTY": ""})
    assert not settings.has("EMPTY")
    assert settings.text("EMPTY", "x") == "x"
    assert settings.text("ABSENT", "") == ""
    assert settings.integer("ABSENT", 7) == 7
    assert settings.number("ABSENT", 1.5) == 1.5
    assert settings.flag("ABSENT") is False
    assert settings.path("ABSENT", Path("/x")) == Path("/x")
    assert settings.entries("ABSENT", ()) == ()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("", lambda s: s.text("V")),
        ("a\nb", lambda s: s.text("V")),
        ("x", lambda s: s.integer("V")),
        ("-1", lambda s: s.integer("V")),
        ("70000", lambda s: s.integer("V", maximum=65535)),
        ("nan", lambda s: s.number("V")),
        ("x", lambda s: s.number("V")),
        ("maybe", lambda s: s.flag("V")),
        ("relative", lambda s: s.path("V")),
        ("kvm2", lambda s: s.choice("V", ("auto", "tcg", "kvm"))),
        ("host", lambda s: s.address("V")),
        (":80", lambda s: s.address("V")),
        ("h:99999", lambda s: s.address("V")),
        ("a=/x,a=/y", lambda s: s.paths_by_name("V")),
        ("a=x", lambda s: s.paths_by_name("V")),
        ("a", lambda s: s.paths_by_name("V")),
    ],
)
def test_settings_bad_value_names_the_variable(value: str, read: Callable[[Settings], object]) -> None:
    with pytest.raises(SettingsError, match=r"^V ") as caught:
        read(Settings({"V": value}))
    assert caught.value.variable == "V"
    assert "\n" not in str(caught.value)

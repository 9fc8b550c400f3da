"""Reads a daemon's settings from environment variables, with an error that names the variable and what it should be.

Each daemon's config.py is the only reader: it makes a frozen dataclass of what it takes from here.
"""

import math
from collections.abc import Mapping
from pathlib import Path


class SettingsError(Exception):
    """A setting is missing or can't be: `variable` says which, `problem` why."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable} {problem}")
        self.variable = variable
        self.problem = problem


class Settings:
    """Typed reads of environment variables; an empty value counts as absent.

    Every method raises SettingsError where the value can't be what it should, and where it is absent and no default
    (None) is given.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def has(self, variable: str) -> bool:
        return bool(self._environment.get(variable))

    def text(self, variable: str, default: str | None = None) -> str:
        value = self._environment.get(variable) or default
        if value is None:
            raise SettingsError(variable, "must be set")
        if not value.isprintable():
            raise SettingsError(variable, "has characters that can't be printed")
        return value

    def choice(self, variable: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(variable, default)
        if value not in choices:
            raise SettingsError(variable, f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    def integer(
        self, variable: str, default: int | None = None, minimum: int = 0, maximum: int = 2**63 - 1
    ) -> int:
        text = self.text(variable, None if default is None else str(default))
        try:
            value = int(text)
        except ValueError:
            raise SettingsError(variable, f"must be a whole number, not {text!r}") from None
        if not minimum <= value <= maximum:
            raise SettingsError(variable, f"must be from {minimum} to {maximum}, not {value}")
        return value

    def number(
        self,
        variable: str,
        default: float | None = None,
        minimum: float = 0.0,
        maximum: float = math.inf,
    ) -> float:
        text = self.text(variable, None if default is None else repr(default))
        try:
            value = float(text)
        except ValueError:
            raise SettingsError(variable, f"must be a number, not {text!r}") from None
        if not math.isfinite(value) or not minimum <= value <= maximum:
            raise SettingsError(variable, f"must be a number from {minimum:g} to {maximum:g}, not {text!r}")
        return value

    def flag(self, variable: str, *, default: bool = False) -> bool:
        value = self.text(variable, "1" if default else "0").lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        raise SettingsError(variable, f"must be 1 or 0, not {value!r}")

    def path(self, variable: str, default: Path | None = None) -> Path:
        """An absolute path ("~" isn't expanded)."""
        value = Path(self.text(variable, None if default is None else str(default)))
        if not value.is_absolute():
            raise SettingsError(variable, f"must be an absolute path, not {str(value)!r}")
        return value

    def address(self, variable: str, default: str | None = None) -> str:
        """ "host:port" with a port from 0 to 65535."""
        value = self.text(variable, default)
        host, separator, port = value.rpartition(":")
        if not host or not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise SettingsError(variable, f'must be "address:port", not {value!r}')
        return value

    def entries(self, variable: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list "a,b,c"; spaces around an entry and empty entries are dropped."""
        text = self.text(variable, None if default is None else ",".join(default))
        return tuple(entry.strip() for entry in text.split(",") if entry.strip())

    def paths_by_name(self, variable: str) -> dict[str, Path]:
        """A list "name=/absolute/path,other=/path", each name once."""
        paths: dict[str, Path] = {}
        for entry in self.entries(variable):
            name, separator, path = (part.strip() for part in entry.partition("="))
            if not name or not separator or not Path(path).is_absolute() or name in paths:
                raise SettingsError(variable, f'must be "name=/path,..." with each name once, not {entry!r}')
            paths[name] = Path(path)
        return paths

"""Pure: no I/O, no clock, no logging.

Paths on datastores, as vSphere writes them: "[shared] web01/web01.vmx". They come from clients and peers and end in
file names on a host, so nothing that could lead out of the datastore, or mislead who reads it, passes `parse`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from runtime.faults import InvalidDatastorePath

MAX_COMPONENT_BYTES = 255  # NAME_MAX of the usual Linux file systems
MAX_PATH_BYTES = 1024
MAX_DATASTORE_CHARS = 80
_FORM = re.compile(r"\[([^\[\]/\\]+)\](?: (.*))?", re.DOTALL)


@dataclass(frozen=True, order=True)
class DatastorePath:
    """A datastore's name and a path in it: relative, "/" between its parts, empty for the datastore's root."""

    datastore: str
    relative: str

    def __post_init__(self) -> None:
        """:raises InvalidDatastorePath: what `parse` would refuse can't be built by hand either."""
        name = self.datastore
        if (
            not 1 <= len(name) <= MAX_DATASTORE_CHARS
            or not _FORM.fullmatch(f"[{name}]")
            or not _is_plain(name)
        ):
            raise _invalid(str(self), "the datastore's name can't be one")
        if self.relative:
            for part in self.relative.split("/"):
                _check_part(str(self), part)
        if len(self.relative.encode("utf-8", "replace")) > MAX_PATH_BYTES:
            raise _invalid(str(self), "it is too long")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "[datastore] folder/file"; a "/" at the end is dropped, "[datastore]" alone is its root.

        :raises InvalidDatastorePath: another form, an absolute path, ".", "..", empty parts, control characters,
            spaces around a part, or too long.
        """
        match = _FORM.fullmatch(text) if len(text) <= 2 * MAX_PATH_BYTES else None
        if match is None:
            raise _invalid(text, 'its form is "[datastore] folder/file"')
        return cls(match[1], (match[2] or "").removesuffix("/") if match[2] != "/" else "/")

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.relative}" if self.relative else f"[{self.datastore}]"

    @property
    def name(self) -> str:
        """The last part; empty for the root."""
        return self.relative.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix: "web01" of "[shared] web01/web01.vmx"."""
        return Path(self.name).stem

    @property
    def parent(self) -> Self:
        """The folder that it is in; the root is its own parent."""
        return type(self)(self.datastore, self.relative.rpartition("/")[0])

    def child(self, name: str) -> Self:
        """A file or folder in this folder; `name` may have several parts.

        :raises InvalidDatastorePath: as `parse`.
        """
        return type(self)(self.datastore, f"{self.relative}/{name}" if self.relative else name)

    def under(self, mount_point: Path) -> Path:
        """Where it is on a host that has the datastore at `mount_point`. Symlinks there are the caller's to refuse."""
        return mount_point / self.relative if self.relative else mount_point


def _check_part(path: str, part: str) -> None:
    if part in ("", ".", ".."):
        raise _invalid(path, 'empty parts, "." and ".." are refused')
    if not _is_plain(part):
        raise _invalid(path, "control characters and spaces around a part are refused")
    if len(part.encode()) > MAX_COMPONENT_BYTES:
        raise _invalid(path, "a part of it is too long")


def _is_plain(part: str) -> bool:
    return part.isprintable() and part == part.strip()


def _invalid(path: str, reason: str) -> InvalidDatastorePath:
    shown = ascii(path[:120])
    return InvalidDatastorePath(f"{shown} is no datastore path: {reason}.", path[:200])

"""Names and ids in requests: what a name may be, and which object is meant. Pure: no I/O, no clock, no logging.

Wherever a request names an object, its id or its name is taken; an id wins. A name that several objects have is
refused: the id must be given. For that reason no new object may be called like an id.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from runtime.faults import InvalidArgument, ManagedObjectNotFound
from vpxd.inventory.ids import Kind, looks_like_id

MAX_NAME_CHARS = 80
_HOST_NAME = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")


class Named(Protocol):
    """Has an id and a name."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def require_name(name: str, argument: str) -> str:
    """A display name that may be given to a new object; answers it.

    :raises InvalidArgument: it isn't 1-80 characters, has '/', '\\', control characters or blanks at an end, is
    "." or
        "..", or has the form of an id such as "vm-12".
    """
    reason = ""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        reason = f"must have 1 to {MAX_NAME_CHARS} characters"
    elif not name.isprintable() or "/" in name or "\\" in name:
        reason = "must not have '/', '\\' or control characters"
    elif name != name.strip() or name in (".", ".."):
        reason = "must not begin or end with a blank, and not be '.' or '..'"
    elif looks_like_id(name):
        reason = "must not have the form of an id"
    if reason:
        raise InvalidArgument(f"{argument} {reason}: {name[:MAX_NAME_CHARS]!r}", argument=argument)
    return name


def require_host_name(name: str, argument: str) -> str:
    """A host's name: a name that is also a DNS name (it stands in the host's certificate); answers it.

    :raises InvalidArgument: it can't be one.
    """
    require_name(name, argument)
    if len(name) > 63 or not _HOST_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{argument} must be a DNS name of at most 63 characters: {name!r}", argument=argument
        )
    return name


def require_address(address: str, argument: str) -> str:
    """An "address:port"; answers it. :raises InvalidArgument: it isn't one."""
    match = _ADDRESS.fullmatch(address) if len(address) <= 280 else None
    if match is None or not 0 < int(match["port"]) < 65536:
        raise InvalidArgument(f'{argument} must be "address:port": {address[:80]!r}', argument=argument)
    return address


def find(kind: Kind, key: str, objects: Mapping[str, N], argument: str) -> N:
    """The object with this id, else the one with this name.

    :raises InvalidArgument: no key, or several objects have this name.
    :raises ManagedObjectNotFound: there is none.
    """
    if not key:
        raise InvalidArgument(f"no {kind.label} is named", argument=argument)
    by_id = objects.get(key)
    if by_id is not None:
        return by_id
    return only_one(kind, key, (entry for entry in objects.values() if entry.name == key), argument)


def only_one(kind: Kind, key: str, found: Iterable[N], argument: str) -> N:
    """The single object found for `key`. :raises InvalidArgument: several. :raises ManagedObjectNotFound: none."""
    candidates = list(found)
    if not candidates:
        shown = key[:MAX_NAME_CHARS]
        raise ManagedObjectNotFound(f"there is no {kind.label} {shown!r}", kind=kind.label, key=shown)
    if len(candidates) > 1:
        ids = ", ".join(sorted(entry.id for entry in candidates))
        raise InvalidArgument(
            f"{len(candidates)} {kind.label}s are called {key!r}: name one by its id ({ids})",
            argument=argument,
        )
    return candidates[0]

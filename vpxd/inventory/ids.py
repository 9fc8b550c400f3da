"""Ids as vSphere makes them: a kind and a number, "vm-12". Pure: no I/O, no clock, no logging.

One counter serves all kinds of the inventory, another one tasks; both are kept in the database, so no id is
ever given out twice. People and programs parse these ids: the forms never change.
"""

import re
from enum import StrEnum


class Kind(StrEnum):
    """Kinds of managed objects; the value is the id's prefix."""

    DATACENTER = "datacenter-"
    CLUSTER = "domain-c"
    HOST = "host-"
    DATASTORE = "datastore-"
    NETWORK = "network-"
    VM = "vm-"
    TASK = "task-"

    @property
    def label(self) -> str:
        """For people: "cluster"."""
        return "cluster" if self is Kind.CLUSTER else self.value.rstrip("-")

    @property
    def counter(self) -> str:
        """The counter that numbers this kind."""
        return "task" if self is Kind.TASK else "inventory"


_ANY_ID = re.compile(rf"(?:{'|'.join(re.escape(kind.value) for kind in Kind)})[0-9]+")


def id_of(kind: Kind, number: int) -> str:
    """E.g. "vm-12"."""
    return f"{kind.value}{number}"


def number_of(kind: Kind, object_id: str) -> int | None:
    """The number in the id, or None when it is no id of this kind."""
    digits = object_id.removeprefix(kind.value)
    if digits == object_id or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        return None
    return int(digits)


def looks_like_id(text: str) -> bool:
    """Whether it has the form of an id of any kind; such names are refused, they could be taken for another object."""
    return _ANY_ID.fullmatch(text) is not None

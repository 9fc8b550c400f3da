"""The id of what a user asked for, carried through every daemon that works on it.

Client, vpxd, vpxa, hostd and vmx log under the same id, so that one search shows one operation in all logs. It travels
as metadata of each rpc: channels add the current one, servers take it up. The current id is a context variable, so it
follows tasks that are created under it.
"""

import re
import secrets
from contextvars import ContextVar

import structlog

METADATA_KEY = "x-operation-id"
_MAX_CHARS = 128
_VALID = re.compile(rf"[A-Za-z0-9._:/-]{{1,{_MAX_CHARS}}}")
_current: ContextVar[str] = ContextVar("operation_id", default="")


def new_operation_id() -> str:
    """A fresh id; it isn't current until `use_operation_id`."""
    return secrets.token_hex(4)


def current_operation_id() -> str:
    """The id of the operation that the running task works on; empty outside of any."""
    return _current.get()


def use_operation_id(operation_id: str) -> str:
    """Makes it current in this task and the tasks it creates, and binds it to the log; answers the id taken.

    An id that can't be one (it may come from a peer) is replaced by a fresh one, so that it can't forge log lines.
    """
    if not _VALID.fullmatch(operation_id):
        operation_id = new_operation_id()
    _current.set(operation_id)
    structlog.contextvars.bind_contextvars(operation_id=operation_id)
    return operation_id


def child(suffix: str) -> str:
    """The id for a part of the current operation, e.g. "3f2a91bc-undo"; not made current."""
    return f"{_current.get() or new_operation_id()}-{suffix}"[:_MAX_CHARS]

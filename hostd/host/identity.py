"""The host's own uuid: made once, kept for the life of its state directory. Owner records name it."""

import json
import uuid as uuid_module
from pathlib import Path

from runtime.faults import CannotAccessFile, FileNotFound
from runtime.ondisk.durable import read_bounded, write_durably


def load_or_make_host_uuid(path: Path) -> str:
    """The uuid in the file, made at the first start; blocks.

    :raises CannotAccessFile: the file is there but can't be read. It is never replaced: another uuid would make this
        another host, whose VMs belong to somebody else.
    """
    try:
        content = read_bounded(path, 4096)
    except FileNotFound:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        uuid = str(uuid_module.uuid4())
        write_durably(path, json.dumps({"uuid": uuid}).encode())
        return uuid
    try:
        return str(uuid_module.UUID(json.loads(content)["uuid"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotAccessFile("The host's identity file isn't valid.", path=str(path)) from error

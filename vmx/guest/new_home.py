"""A running guest's home moves to another folder: what QEMU itself holds open there.

    run lock    opened and taken by vmx, passed over the QMP socket (SCM_RIGHTS, `getfd`): QEMU keeps the description,
                and so the lock, until it ends
    logs        the serial ports get new back ends that write to the new files (`chardev-change`)

The old lock and files stay open in QEMU or are closed by it; nothing here touches what lies in the old folder.

QEMU: qapi/misc.json (getfd), qapi/char.json.
"""

from __future__ import annotations

from pathlib import Path

from vmx.files import VmFiles
from vmx.guest.qmp import QmpConnection

__all__ = ["hold_run_lock", "move_logs"]


async def hold_run_lock(qmp: QmpConnection, descriptor: int, epoch: int) -> None:
    """Have QEMU hold the open file description behind `descriptor`, which stays the caller's too.

    :raises QmpFailure: QEMU didn't take it.
    """
    await qmp.pass_descriptor(descriptor, f"run-lock-{epoch}")


async def move_logs(qmp: QmpConnection, files: VmFiles, run_dir: Path, epoch: int) -> None:
    """Have the serial ports write to the logs of `files`, which are made where they aren't there.

    The console's socket gets a new name, because QEMU unlinks the old one when it closes it.

    :raises QmpFailure: QEMU refused; the port goes on with its old log.
    """
    console = {
        "addr": {"type": "unix", "data": {"path": str(run_dir / f"con{epoch}.sock")}},
        "server": True,
        "wait": False,
        "logfile": str(files.console_log),
        "logappend": True,
    }
    await qmp.execute("chardev-change", {"id": "console", "backend": {"type": "socket", "data": console}})
    heartbeat = {"out": str(files.heartbeat_log), "append": True}
    await qmp.execute("chardev-change", {"id": "heartbeat", "backend": {"type": "file", "data": heartbeat}})

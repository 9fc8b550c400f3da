"""Pure: no I/O, no clock, no logging.

How a fault is said to a person:

    error: web01 can't be migrated to esx02.
      caused by: 512 MiB asked for, 128 MiB unreserved. (InsufficientMemoryResources)
      noticed by: hostd@esx02
      hint: power off or move a VM of that host, or choose another one (vpx vm check).
"""

from collections.abc import Mapping
from types import MappingProxyType

from proto.vim.v1 import fault_pb2
from runtime.faults import (
    SystemFault,
    TaskInProgress,
    VimFault,
)
from vpxd.cli.console_text import plain
from vpxd.cli.errors import CliError, Interrupted
from vpxd.cli.exit_status import ExitStatus, status_of_fault

_MAX_CAUSES = 8

_MAKE_ROOM = "power off or move a VM of that host, or choose another host."
_CALMER = "the guest writes faster than is sent: raise --switchover-goal-ms or --streams, or try later."
_HINTS: Mapping[int, str] = MappingProxyType(
    {
        fault_pb2.FAULT_TYPE_MANAGED_OBJECT_NOT_FOUND: "the `list` commands show names and ids.",
        fault_pb2.FAULT_TYPE_CONCURRENT_ACCESS: "it was changed meanwhile: look at it again and repeat.",
        fault_pb2.FAULT_TYPE_NOT_AUTHENTICATED: "this client has no certificate of this cluster: see --config.",
        fault_pb2.FAULT_TYPE_INVALID_JOIN_TOKEN: "it works once, for one host: `vpx host token NAME` makes another.",
        fault_pb2.FAULT_TYPE_HOST_NOT_CONNECTED: "`vpx host list` shows which hosts are connected.",
        fault_pb2.FAULT_TYPE_HOST_NOT_REACHABLE: "are the host's daemons running?",
        fault_pb2.FAULT_TYPE_NO_COMPATIBLE_HOST: "`vpx vm check NAME` shows what stands against each host.",
        fault_pb2.FAULT_TYPE_INSUFFICIENT_MEMORY_RESOURCES: _MAKE_ROOM,
        fault_pb2.FAULT_TYPE_INSUFFICIENT_CPU_RESOURCES: _MAKE_ROOM,
        fault_pb2.FAULT_TYPE_INVALID_DATASTORE_PATH: 'paths are written "[datastore] folder/file".',
        fault_pb2.FAULT_TYPE_INACCESSIBLE_DATASTORE: "`vpx datastore list` shows which hosts see it.",
        fault_pb2.FAULT_TYPE_POLICY_NOT_SATISFIED: "`vpx policy check NAME` shows which datastores satisfy it.",
        fault_pb2.FAULT_TYPE_NO_DISK_SPACE: "`vpx datastore list` shows the free space.",
        fault_pb2.FAULT_TYPE_PROGRESS_STALLED: _CALMER,
        fault_pb2.FAULT_TYPE_VMOTION_NOT_CONFIGURED: "give the host a vMotion address (HOST_VMOTION_ADDRESS).",
        fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN: "check the vMotion network between the hosts; the VM is where it was.",
        fault_pb2.FAULT_TYPE_PAST_POINT_OF_NO_RETURN: "the VM runs at its destination, or is about to.",
    }
)


def say(error: VimFault | CliError) -> list[str]:
    """The lines to print, without line ends or control characters."""
    if isinstance(error, Interrupted):
        return [plain(text) for text in (str(error), error.hint) if text]
    if isinstance(error, CliError):
        lines = [f"error: {plain(str(error))}"]
        return [*lines, f"  hint: {plain(error.hint)}"] if error.hint else lines
    lines = [f"error: {_sentence(error)}"]
    seen = {str(error)}
    cause, origin = error.__cause__, error.origin
    while isinstance(cause, VimFault) and len(seen) <= _MAX_CAUSES:
        if str(cause) not in seen:
            lines.append(f"  caused by: {_sentence(cause)}")
        seen.add(str(cause))
        origin = cause.origin or origin
        cause = cause.__cause__
    if origin:
        lines.append(f"  noticed by: {plain(origin)}")
    hint = hint_of(error)
    return [*lines, f"  hint: {plain(hint)}"] if hint else lines


def hint_of(fault: VimFault) -> str:
    """What to do about it, of the fault or the first of its causes that has a hint; empty: nothing is known."""
    error: BaseException | None = fault
    for _ in range(_MAX_CAUSES):
        if isinstance(error, TaskInProgress) and error.task:
            return f"`vpx task watch {error.task}` waits for it, `vpx task cancel {error.task}` stops it."
        if isinstance(error, SystemFault) and error.operation_id:
            return f"a defect: the log of {error.origin or 'the daemon'} has more under operation {error.operation_id}."
        if isinstance(error, VimFault) and error.fault_type in _HINTS:
            return _HINTS[error.fault_type]
        error = error.__cause__ if error is not None else None
    return ""


def status_of(error: VimFault | CliError) -> ExitStatus:
    """The exit status for it."""
    return error.status if isinstance(error, CliError) else status_of_fault(error.fault_type)


def fault_name(fault_type: int) -> str:
    """ "InsufficientMemoryResources", as in the vSphere API; of an unknown number "Fault(123)"."""
    try:
        name = fault_pb2.FaultType.Name(fault_pb2.FaultType.ValueType(fault_type))
    except ValueError:
        return f"Fault({fault_type})"
    words = name.removeprefix("FAULT_TYPE_").split("_")
    return "".join("VMotion" if word == "VMOTION" else word.capitalize() for word in words)


def _sentence(fault: VimFault) -> str:
    return f"{plain(str(fault)) or 'no reason was given'} ({fault_name(fault.fault_type)})"

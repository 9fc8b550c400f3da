"""Faults on the wire: exceptions of runtime/faults.py <-> proto.vim.v1.Fault <-> gRPC status.

    servicer raises X from Y  --fault_to_proto-->  Fault(X, cause=Fault(Y))  --google.rpc.Status in the trailers-->
    caller gets AioRpcError   --fault_of-------->  X, with X.origin set and X.__cause__ = Y

What crosses is the type, one sentence, the typed fields as text, and the chain of causes. Never a traceback, never the
text of an exception that isn't ours: it may hold anything. Everything read from the wire is bounded and cleaned first.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from math import isfinite
from types import MappingProxyType
from typing import Protocol, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from proto.vim.v1 import fault_pb2
from runtime.faults import (
    HostNotReachable,
    NoPermission,
    NotAuthenticated,
    NotSupported,
    SystemFault,
    TimedOut,
    VimFault,
)
from runtime.rpc.operation_id import current_operation_id

_log = structlog.get_logger(__name__)

DETAILS_KEY = (
    "grpc-status-details-bin"  # https://github.com/grpc/proposal: the key that grpc-status libraries share
)

MAX_CAUSES = 8
MAX_FAULT_BYTES = 16 * 1024  # trailers are limited: see METADATA_BYTES in runtime/rpc/channel.py
_MAX_MESSAGE_CHARS = 1000
_MAX_DETAIL_CHARS = 4000
_CUT_DETAIL_CHARS = 400  # of a fault that is too large by itself
_MAX_ORIGIN_CHARS = 100
_MAX_STATUS_MESSAGE_CHARS = 300

ResponseT_co = TypeVar("ResponseT_co", covariant=True)


class StreamCall(Protocol[ResponseT_co]):
    """What is needed of a grpc.aio.UnaryStreamCall."""

    def __aiter__(self) -> AsyncIterator[ResponseT_co]: ...

    def cancel(self) -> bool: ...


_Code = grpc.StatusCode
STATUS_OF: Mapping[int, grpc.StatusCode] = MappingProxyType(
    {
        fault_pb2.FAULT_TYPE_UNSPECIFIED: _Code.UNKNOWN,
        fault_pb2.FAULT_TYPE_INVALID_ARGUMENT: _Code.INVALID_ARGUMENT,
        fault_pb2.FAULT_TYPE_MANAGED_OBJECT_NOT_FOUND: _Code.NOT_FOUND,
        fault_pb2.FAULT_TYPE_DUPLICATE_NAME: _Code.ALREADY_EXISTS,
        fault_pb2.FAULT_TYPE_INVALID_STATE: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_INVALID_POWER_STATE: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_TASK_IN_PROGRESS: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_NOT_SUPPORTED: _Code.UNIMPLEMENTED,
        fault_pb2.FAULT_TYPE_CONCURRENT_ACCESS: _Code.ABORTED,
        fault_pb2.FAULT_TYPE_REQUEST_CANCELED: _Code.CANCELLED,
        fault_pb2.FAULT_TYPE_TIMED_OUT: _Code.DEADLINE_EXCEEDED,
        fault_pb2.FAULT_TYPE_RESOURCE_IN_USE: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_NOT_AUTHENTICATED: _Code.UNAUTHENTICATED,
        fault_pb2.FAULT_TYPE_NO_PERMISSION: _Code.PERMISSION_DENIED,
        fault_pb2.FAULT_TYPE_INVALID_JOIN_TOKEN: _Code.UNAUTHENTICATED,
        fault_pb2.FAULT_TYPE_HOST_NOT_CONNECTED: _Code.UNAVAILABLE,
        fault_pb2.FAULT_TYPE_HOST_NOT_REACHABLE: _Code.UNAVAILABLE,
        fault_pb2.FAULT_TYPE_NO_COMPATIBLE_HOST: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_INSUFFICIENT_MEMORY_RESOURCES: _Code.RESOURCE_EXHAUSTED,
        fault_pb2.FAULT_TYPE_INSUFFICIENT_CPU_RESOURCES: _Code.RESOURCE_EXHAUSTED,
        fault_pb2.FAULT_TYPE_INVALID_DATASTORE_PATH: _Code.INVALID_ARGUMENT,
        fault_pb2.FAULT_TYPE_INACCESSIBLE_DATASTORE: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_FILE_NOT_FOUND: _Code.NOT_FOUND,
        fault_pb2.FAULT_TYPE_FILE_ALREADY_EXISTS: _Code.ALREADY_EXISTS,
        fault_pb2.FAULT_TYPE_FILE_LOCKED: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_NO_DISK_SPACE: _Code.RESOURCE_EXHAUSTED,
        fault_pb2.FAULT_TYPE_INVALID_VM_CONFIG: _Code.INVALID_ARGUMENT,
        fault_pb2.FAULT_TYPE_CANNOT_ACCESS_FILE: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_MIGRATION_FAULT: _Code.ABORTED,
        fault_pb2.FAULT_TYPE_MIGRATION_NOT_READY: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_VMOTION_NOT_CONFIGURED: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN: _Code.UNAVAILABLE,
        fault_pb2.FAULT_TYPE_VMOTION_PROTOCOL_INCOMPATIBLE: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_VIRTUAL_HARDWARE_VERSION_NOT_SUPPORTED: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_FEATURE_REQUIREMENTS_NOT_MET: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_PROGRESS_STALLED: _Code.ABORTED,
        fault_pb2.FAULT_TYPE_MEMORY_VERIFICATION_FAILED: _Code.DATA_LOSS,
        fault_pb2.FAULT_TYPE_PAST_POINT_OF_NO_RETURN: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_NOT_OWNER: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_GUEST_START_FAILED: _Code.ABORTED,
        fault_pb2.FAULT_TYPE_GUEST_DIED: _Code.ABORTED,
        fault_pb2.FAULT_TYPE_INVALID_DISK_FORMAT: _Code.INVALID_ARGUMENT,
        fault_pb2.FAULT_TYPE_CANNOT_ACCESS_NETWORK: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_EVC_ADMISSION_FAILED: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_RULE_VIOLATION: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_POLICY_NOT_SATISFIED: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_DATASTORE_NOT_SUPPORTED: _Code.FAILED_PRECONDITION,
        fault_pb2.FAULT_TYPE_SYSTEM_ERROR: _Code.INTERNAL,
    }
)


def _classes_below(base: type[VimFault]) -> Iterator[type[VimFault]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _classes_below(cls)


CLASS_OF: Mapping[int, type[VimFault]] = MappingProxyType(
    {cls.fault_type: cls for cls in _classes_below(VimFault) if "fault_type" in vars(cls)}
)


def fault_to_proto(error: BaseException, origin: str) -> fault_pb2.Fault:
    """The error with its chain of causes as a message, at most MAX_FAULT_BYTES long; never raises.

    `origin` names this daemon, e.g. "hostd@esx02"; faults that came over a wire keep theirs. An rpc's error is taken as
    the fault in it; of an exception group the first fault counts. Anything else is a defect: it becomes SYSTEM_ERROR
    without its text, and its traceback goes to the log here, once.
    """
    error = _leading(error)
    if not isinstance(error, VimFault):
        operation_id = current_operation_id()
        _log.error("system_error", origin=origin, exc_info=error)
        defect = SystemFault("An internal error: see the daemon's log.", operation_id)
        return _message_of(defect, origin)
    fault = _message_of(error, origin)
    nodes, cause, seen = [fault], error.__cause__, {id(error)}
    while cause is not None and id(cause) not in seen and len(nodes) <= MAX_CAUSES:
        seen.add(id(cause))
        cause = _leading(cause)
        node = _message_of(cause, origin) if isinstance(cause, VimFault) else _foreign_cause(cause, origin)
        nodes.append(node)
        cause = cause.__cause__
    return _linked(nodes)


def fault_from_proto(fault: fault_pb2.Fault) -> VimFault:
    """The exception of the fault's class, with its fields, `origin` and chain of causes; never raises.

    Whatever doesn't fit (an unknown type, a field's bad text, overlong text, too many causes) is replaced by a
    default or cut: a hostile peer can at most say something wrong.
    """
    nodes = [fault]
    while nodes[-1].HasField("cause") and len(nodes) <= MAX_CAUSES:
        nodes.append(nodes[-1].cause)
    error: VimFault | None = None
    for node in reversed(nodes):
        outer = _exception_of(node)
        outer.__cause__ = error
        error = outer
    assert error is not None
    return error


def fault_of(error: grpc.RpcError, peer: str = "") -> VimFault:
    """What an rpc's error says: the fault in its details where there is one, else the nearest fault to its status.

    `peer` names who was called ("vpxa@esx02"), for the message and the fault's host.
    """
    fault = _fault_in_trailers(error)
    if fault is not None:
        return fault_from_proto(fault)
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    text = _clean(str(error.details() or ""), _MAX_STATUS_MESSAGE_CHARS) if code is not None else ""
    peer = peer or "the peer"
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return HostNotReachable(f"No connection to {peer}: {text or 'unavailable'}", host=peer)
        case grpc.StatusCode.CANCELLED:  # we didn't cancel it (that is CancelledError): the server stopped
            return HostNotReachable(f"The call was ended by {peer}.", host=peer)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimedOut(f"No answer from {peer} in time.", operation=peer)
        case grpc.StatusCode.UNAUTHENTICATED:
            return NotAuthenticated(f"Not authenticated by {peer}.")
        case grpc.StatusCode.PERMISSION_DENIED:
            return NoPermission(f"No permission at {peer}.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return NotSupported(f"The call isn't supported by {peer}.", feature=text)
    name = code.name if code is not None else "no status"
    return SystemFault(f"The call failed at {peer} ({name}): {text}", current_operation_id())


@contextmanager
def remote_faults(peer: str) -> Iterator[None]:
    """Around calls to `peer`: an rpc's error leaves as the VimFault that it carries, causes kept.

    CancelledError passes.

    :raises VimFault: instead of any grpc.RpcError.
    """
    try:
        yield
    except grpc.RpcError as error:
        fault = fault_of(error, peer)
        raise fault from fault.__cause__


async def remote_stream(call: "StreamCall[ResponseT_co]", peer: str) -> AsyncGenerator[ResponseT_co, None]:
    """The responses of a streaming rpc to `peer`; the rpc ends when the caller stops reading, however that comes.

    Use it for every streaming rpc: a grpc.aio call that is only dropped runs on until the garbage collector finds it,
    so a relay that was itself canceled would leave its far end streaming.

    :raises VimFault: as `remote_faults`.
    """
    try:
        with remote_faults(peer):
            async for response in call:
                yield response
    finally:
        call.cancel()


def status_of(fault: fault_pb2.Fault) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status code, status message and trailing metadata that carry the fault (google.rpc.Status)."""
    code = STATUS_OF.get(fault.type, grpc.StatusCode.UNKNOWN)
    message = fault.message[:_MAX_STATUS_MESSAGE_CHARS]
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(fault)
    return code, message, ((DETAILS_KEY, status.SerializeToString()),)


def _fault_in_trailers(error: grpc.RpcError) -> fault_pb2.Fault | None:
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                fault = fault_pb2.Fault()
                if detail.Unpack(fault):
                    return fault
        except DecodeError:
            return None
    return None


def _leading(error: BaseException) -> BaseException:
    """The error to tell: the fault an rpc's error carries, or the first fault of a group, else the error itself."""
    if isinstance(error, grpc.RpcError):
        return fault_of(error)
    if isinstance(error, BaseExceptionGroup):
        leaves = list(_leaves(error))
        told = (leaf for leaf in leaves if isinstance(leaf, VimFault | grpc.RpcError))
        first = next(told, leaves[0] if len(leaves) == 1 else None)
        if first is not None:
            return _leading(first)
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _message_of(error: VimFault, origin: str) -> fault_pb2.Fault:
    message = fault_pb2.Fault(
        type=fault_pb2.FaultType.ValueType(error.fault_type),
        message=_clean(str(error.message), _MAX_MESSAGE_CHARS),
        origin=_clean(error.origin or origin, _MAX_ORIGIN_CHARS),
    )
    for field in fields(error):
        value = getattr(error, field.name)
        if field.name != "message" and value != field.default:
            message.details[field.name] = _clean(str(value), _MAX_DETAIL_CHARS)
    return message


def _foreign_cause(cause: BaseException, origin: str) -> fault_pb2.Fault:
    """A cause that is no fault: its class is told, and of an OSError the system's own words for its number."""
    text = type(cause).__name__
    if isinstance(cause, OSError) and cause.strerror:
        text = f"{text}: {cause.strerror}"
    return _message_of(SystemFault(text), origin)


def _linked(nodes: list[fault_pb2.Fault]) -> fault_pb2.Fault:
    """Puts each fault below the one before it; what exceeds MAX_FAULT_BYTES is left out from the deepest cause on."""
    if nodes[0].ByteSize() > MAX_FAULT_BYTES:
        for key, text in list(nodes[0].details.items()):
            nodes[0].details[key] = _clean(text, _CUT_DETAIL_CHARS)
    total, kept = nodes[0].ByteSize(), 1
    for node in nodes[1:]:
        total += node.ByteSize() + 8 * len(nodes)  # each level above adds a tag and a length
        if total > MAX_FAULT_BYTES:
            break
        kept += 1
    for outer, inner in zip(reversed(nodes[: kept - 1]), reversed(nodes[1:kept]), strict=True):
        outer.cause.CopyFrom(inner)
    return nodes[0]


def _exception_of(node: fault_pb2.Fault) -> VimFault:
    cls = CLASS_OF.get(node.type, SystemFault)
    values: dict[str, str | int | float] = {}
    for field in fields(cls):
        if field.name != "message" and field.name in node.details:
            value = _value_of(node.details[field.name], field.type)
            if value is not None:
                values[field.name] = value
    error = cls(_clean(node.message, _MAX_MESSAGE_CHARS))
    for name, value in values.items():
        setattr(error, name, value)
    error.origin = _clean(node.origin, _MAX_ORIGIN_CHARS)
    return error


_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"[-+0-9.eE]{1,32}")


def _value_of(text: str, kind: object) -> str | int | float | None:
    """The text as the field's type; None where it isn't one."""
    if kind is str:
        return _clean(text, _MAX_DETAIL_CHARS)
    if kind is int:
        return int(text) if _INTEGER.fullmatch(text) else None
    try:
        value = float(text) if _NUMBER.fullmatch(text) else None
    except ValueError:
        return None
    return value if value is not None and isfinite(value) else None


def _clean(text: str, max_chars: int) -> str:
    """Bounded, without control characters (they would act on a terminal or forge log lines) and encodable as UTF-8."""
    text = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)

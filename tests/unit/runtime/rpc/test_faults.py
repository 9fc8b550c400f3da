"""Faults to messages and back: nothing is lost between ours, nothing hostile gets through."""

import re
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

import runtime.faults as tree
from proto.vim.v1 import fault_pb2
from runtime.rpc.faults import (
    CLASS_OF,
    DETAILS_KEY,
    MAX_CAUSES,
    MAX_FAULT_BYTES,
    STATUS_OF,
    fault_from_proto,
    fault_of,
    fault_to_proto,
    remote_faults,
    status_of,
)

_PROTO = Path(fault_pb2.__file__).with_name("fault.proto")
_SAMPLES = {str: "some text", int: 4096, float: 0.25}


def _classes(base: type[tree.VimFault] = tree.VimFault) -> list[type[tree.VimFault]]:
    return [base, *(found for cls in base.__subclasses__() for found in _classes(cls))]


def _documented_details() -> dict[str, set[str]]:
    """FaultType's name -> the detail names in the comment beside it."""
    details = {}
    for line in _PROTO.read_text().splitlines():
        if match := re.match(r"\s*(FAULT_TYPE_\w+) = \d+;\s*(?://\s*details: (.*))?$", line):
            names = re.sub(r"\(.*?\)", "", (match[2] or "").partition(";")[0])
            details[match[1]] = {name.strip() for name in names.split(",") if name.strip()}
    return details


def _filled(cls: type[tree.VimFault]) -> tree.VimFault:
    error = cls("A sentence.")
    for field in fields(cls):
        if field.name != "message":
            setattr(error, field.name, _SAMPLES[field.type])  # type: ignore[index]
    return error


def test_status_table_covers_every_fault_type() -> None:
    assert set(STATUS_OF) == set(fault_pb2.FaultType.values())


def test_every_fault_type_has_one_class() -> None:
    assert set(CLASS_OF) == set(fault_pb2.FaultType.values()) - {fault_pb2.FAULT_TYPE_UNSPECIFIED}
    own = [cls.fault_type for cls in _classes() if cls is not tree.VimFault and "fault_type" in vars(cls)]
    assert len(own) == len(set(own)), "two classes share a fault type"


def test_every_class_without_subclasses_has_its_own_fault_type() -> None:
    assert [cls for cls in _classes() if not cls.__subclasses__() and "fault_type" not in vars(cls)] == []


def test_fields_are_those_that_the_proto_names() -> None:
    documented = _documented_details()
    assert len(documented) == len(fault_pb2.FaultType.values())
    for fault_type, cls in CLASS_OF.items():
        own = {field.name for field in fields(cls)} - {"message"}
        named = documented[fault_pb2.FaultType.Name(fault_type)]  # type: ignore[arg-type]
        if issubclass(cls, tree.MigrationFault):  # the .proto says that all of them may have it
            own, named = own | {"phase"}, named | {"phase"}
        assert own == named, cls.__name__


@pytest.mark.parametrize("cls", CLASS_OF.values(), ids=lambda cls: cls.__name__)
def test_fault_with_fields_comes_back_equal(cls: type[tree.VimFault]) -> None:
    error = _filled(cls)
    wire = fault_to_proto(error, "hostd@esx02").SerializeToString()
    back = fault_from_proto(fault_pb2.Fault.FromString(wire))
    assert type(back) is cls
    assert [getattr(back, field.name) for field in fields(cls)] == [
        getattr(error, field.name) for field in fields(cls)
    ]
    assert back.origin == "hostd@esx02"


def _raised(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause  # as `raise error from cause` does
    return error


def test_cause_chain_is_kept_with_its_origins() -> None:
    remote = tree.FileLocked("Locked.", "[shared] a", "esx01")
    remote.origin = "vmx@esx02"
    error = _raised(
        tree.MigrationNotReady("Not ready."), _raised(remote, OSError(28, "No space left on device"))
    )
    back = fault_from_proto(fault_to_proto(error, "hostd@esx02"))
    assert back.origin == "hostd@esx02"
    assert isinstance(back.__cause__, tree.FileLocked)
    assert back.__cause__.origin == "vmx@esx02"
    assert str(back.__cause__.__cause__) == "OSError: No space left on device"


def test_foreign_exception_becomes_system_error_without_its_text() -> None:
    error = _raised(ValueError("the secret"), KeyError("another secret"))
    fault = fault_to_proto(error, "vpxa@esx01")
    assert fault.type == fault_pb2.FAULT_TYPE_SYSTEM_ERROR
    assert "secret" not in str(fault)
    wrapped = fault_to_proto(_raised(tree.GuestDied("Died."), ValueError("the secret")), "vmx@esx01")
    assert wrapped.cause.message == "ValueError"
    assert "secret" not in str(wrapped)


def test_exception_group_tells_its_first_fault() -> None:
    group = BaseExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [tree.GuestDied("Died.", "137")])])
    assert fault_to_proto(group, "o").type == fault_pb2.FAULT_TYPE_GUEST_DIED


def test_endless_causes_are_cut() -> None:
    first = tree.GuestDied("0")
    error: BaseException = first
    for number in range(1, 40):
        error = _raised(tree.GuestDied(str(number)), error)
    first.__cause__ = error  # a ring
    fault, depth = fault_to_proto(error, "o"), 0
    while fault.HasField("cause"):
        fault, depth = fault.cause, depth + 1
    assert depth == MAX_CAUSES


@pytest.mark.parametrize("letter", ["x", "\N{PILE OF POO}", "\x00", "\udc80"])
def test_huge_fault_is_bounded_and_keeps_its_type(letter: str) -> None:
    huge = letter * 100_000
    error: BaseException = tree.TaskInProgress(huge, huge, huge, huge)
    for _ in range(5):
        error = _raised(tree.TaskInProgress(huge, huge, huge, huge), error)
    fault = fault_to_proto(error, huge)
    assert fault.ByteSize() <= MAX_FAULT_BYTES
    assert isinstance(fault_from_proto(fault), tree.TaskInProgress)
    _, _, trailers = status_of(fault)
    assert len(trailers[0][1]) < 20_000


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("requested_bytes", "many"),
        ("requested_bytes", "1_000"),
        ("requested_bytes", "9" * 5000),
        ("requested_bytes", "٣"),
        ("requested_bytes", " 1"),
        ("nothing", "1"),
    ],
)
def test_bad_text_of_a_number_becomes_the_default(key: str, text: str) -> None:
    fault = fault_pb2.Fault(
        type=fault_pb2.FAULT_TYPE_INSUFFICIENT_MEMORY_RESOURCES, message="No.", details={key: text}
    )
    error = fault_from_proto(fault)
    assert isinstance(error, tree.InsufficientMemoryResources)
    assert error.requested_bytes == 0


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "-", "1e", "0x1p3", ""])
def test_bad_text_of_a_fraction_becomes_the_default(text: str) -> None:
    fault = fault_pb2.Fault(type=fault_pb2.FAULT_TYPE_TIMED_OUT, details={"timeout_s": text})
    error = fault_from_proto(fault)
    assert isinstance(error, tree.TimedOut)
    assert error.timeout_s == 0.0


_text = st.text(max_size=60)


def _with_cause(outer: fault_pb2.Fault, cause: fault_pb2.Fault) -> fault_pb2.Fault:
    made = fault_pb2.Fault()
    made.CopyFrom(outer)
    made.cause.CopyFrom(cause)
    return made


_hostile = st.recursive(
    st.builds(
        fault_pb2.Fault,
        type=st.sampled_from(fault_pb2.FaultType.values()) | st.integers(-(2**31), 2**31 - 1),
        message=_text,
        origin=_text,
        details=st.dictionaries(
            st.sampled_from([f.name for cls in CLASS_OF.values() for f in fields(cls)]) | _text,
            _text,
            max_size=6,
        ),
    ),
    lambda inner: st.builds(_with_cause, inner, inner),
    max_leaves=20,
)


@given(_hostile)
def test_hostile_fault_is_taken_in_and_passed_on(fault: fault_pb2.Fault) -> None:
    error = fault_from_proto(fault)
    for field in fields(error):
        assert type(getattr(error, field.name)) is field.type
    again = fault_to_proto(error, "relay@here")
    assert again.ByteSize() <= MAX_FAULT_BYTES
    assert all(c.isprintable() or c in "\n\t" for c in again.message + again.origin)
    assert type(fault_from_proto(again)) is type(error)
    status_of(fault)


def _rpc_error(code: grpc.StatusCode, trailers: tuple[tuple[str, bytes], ...] = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details="said\x1b[0m so"
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, tree.HostNotReachable),
        (grpc.StatusCode.CANCELLED, tree.HostNotReachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, tree.TimedOut),
        (grpc.StatusCode.UNAUTHENTICATED, tree.NotAuthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, tree.NoPermission),
        (grpc.StatusCode.UNIMPLEMENTED, tree.NotSupported),
        (grpc.StatusCode.INTERNAL, tree.SystemFault),
        (grpc.StatusCode.UNKNOWN, tree.SystemFault),
    ],
)
def test_status_without_fault_becomes_the_nearest_fault(
    code: grpc.StatusCode, expected: type[tree.VimFault]
) -> None:
    error = fault_of(_rpc_error(code), "vpxa@esx02")
    assert type(error) is expected
    assert "vpxa@esx02" in str(error)
    assert "\x1b" not in str(error)


@given(st.binary(max_size=200))
def test_garbage_in_the_details_falls_back_to_the_status(garbage: bytes) -> None:
    error = fault_of(_rpc_error(grpc.StatusCode.UNAVAILABLE, ((DETAILS_KEY, garbage),)))
    assert isinstance(error, tree.VimFault)


def test_deeply_nested_fault_in_the_details_is_survived() -> None:
    inner = b""
    for _ in range(3000):
        length, size = b"", len(inner)
        while True:
            length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
            size >>= 7
            if not size:
                break
        inner = b"\x2a" + length + inner
    status = status_pb2.Status(code=14)
    status.details.add(type_url="type.googleapis.com/proto.vim.v1.Fault", value=inner)
    error = fault_of(_rpc_error(grpc.StatusCode.UNAVAILABLE, ((DETAILS_KEY, status.SerializeToString()),)))
    assert isinstance(error, tree.HostNotReachable)


def test_remote_faults_raises_the_fault_with_its_cause_and_not_the_rpc_error() -> None:
    fault = fault_to_proto(
        _raised(tree.GuestDied("Died.", "137"), tree.NoDiskSpace("Full.", "shared")), "vmx@esx01"
    )
    _, _, trailers = status_of(fault)
    with pytest.raises(tree.GuestDied) as caught, remote_faults("hostd@esx01"):
        raise _rpc_error(grpc.StatusCode.ABORTED, trailers)
    assert isinstance(caught.value.__cause__, tree.NoDiskSpace)
    assert caught.value.__suppress_context__

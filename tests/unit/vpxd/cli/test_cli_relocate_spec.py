"""The specification as a file: there and back, and what is refused by its field."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from vpxd.cli.errors import BadSpec
from vpxd.cli.relocate_spec import MAX_CHARS, parse, text_of

_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
_maybe = st.one_of(st.just(""), _names)
_formats = st.sampled_from(vm_config_pb2.DiskFormat.values())
_uint32 = st.integers(0, 2**32 - 1)
_seconds = st.floats(0, 600, allow_nan=False)


@st.composite
def _specs(draw: st.DrawFn) -> service_pb2.RelocateSpec:
    where = draw(st.sampled_from(["host", "cluster", ""]))
    datastore = draw(_maybe)
    spec = service_pb2.RelocateSpec(
        datastore=datastore,
        format=draw(_formats) if datastore else vm_config_pb2.DISK_FORMAT_UNSPECIFIED,
        policy=draw(_maybe),
    )
    if where:
        setattr(spec, where, draw(_names))
    for key in draw(st.lists(st.integers(1, 2**32 - 1), unique=True, max_size=4)):
        spec.disks.add(key=key, datastore=draw(_maybe), format=draw(_formats), policy=draw(_maybe))
    for nic in draw(st.lists(st.integers(1, 2**32 - 1), unique=True, max_size=3)):
        spec.networks.add(nic=nic, network=draw(_names))
    for group in draw(st.lists(_names, unique=True, max_size=3)):
        spec.networks.add(from_network=group, network=draw(_names))
    return spec


_options = st.builds(
    spec_pb2.MigrationOptions,
    verify=st.sampled_from(spec_pb2.VerifyMode.values()),
    encryption=st.sampled_from(spec_pb2.EncryptionMode.values()),
    priority=st.sampled_from(spec_pb2.Priority.values()),
    switchover_goal_ms=_uint32,
    max_iterations=_uint32,
    streams=_uint32,
    bandwidth_bytes_per_s=st.integers(0, 2**64 - 1),
    tracer=_maybe,
    network_timeout_s=_seconds,
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("version", "host", "cluster", "datastore", "format", "policy", "disks", "networks", "options")


def test_printed_specification_is_harmless_for_a_terminal() -> None:
    request = service_pb2.RelocateVmRequest(spec=service_pb2.RelocateSpec(host="a\x9b2J\u202e\x7fé"))
    text = text_of(request)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "é" in text
    assert parse(text).spec == request.spec


@given(_specs(), _options)
def test_specification_that_is_printed_is_read_back_the_same(
    spec: service_pb2.RelocateSpec, options: spec_pb2.MigrationOptions
) -> None:
    request = service_pb2.RelocateVmRequest(spec=spec, options=options)
    assert parse(text_of(request)) == request


def test_printed_specification_has_neither_the_vm_nor_what_is_unset() -> None:
    request = service_pb2.RelocateVmRequest(vm="vm-1", spec=service_pb2.RelocateSpec(host="esx02"))
    assert json.loads(text_of(request)) == {"version": 1, "host": "esx02"}


def _parsed(text: str) -> service_pb2.RelocateVmRequest | None:
    """None: it was refused, as it should be. Any other exception is a defect."""
    try:
        return parse(text)
    except BadSpec:
        return None


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(_FIELDS), _json, max_size=4) | _json)
def test_parse_of_any_json_is_a_request_or_a_typed_error(document: Any) -> None:
    found = _parsed(json.dumps(document))
    assert found is None or parse(text_of(found)) == found


@given(st.text(max_size=60))
def test_parse_of_any_text_is_a_request_or_a_typed_error(text: str) -> None:
    found = _parsed(text)
    assert found is None or parse(text_of(found)) == found


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
        ({"Host": "esx02"}, "Host"),
        ({"host": 3}, "host"),
        ({"host": "\ud800"}, "host"),
        ({"host": "x" * 1001}, "host"),
        ({"host": "a", "cluster": "b"}, "cluster"),
        ({"format": "thin"}, "format"),
        ({"datastore": "a", "format": "THIN"}, "format"),
        ({"disks": {}}, "disks"),
        ({"disks": [{"key": 2000}] * 65}, "disks"),
        ({"disks": ["2000"]}, "disks[0]"),
        ({"disks": [{"datastore": "a"}]}, "disks[0].key"),
        ({"disks": [{"key": -1}]}, "disks[0].key"),
        ({"disks": [{"key": 2000}, {"key": 2001, "format": 1}]}, "disks[1].format"),
        ({"disks": [{"key": 2000}, {"key": 2000}]}, "disks[1].key"),
        ({"networks": [{"from": "a"}]}, "networks[0].to"),
        ({"networks": [{"to": "a"}]}, "networks[0]"),
        ({"networks": [{"to": "a", "from": "b", "nic": 4000}]}, "networks[0]"),
        ({"networks": [{"to": "a", "from": "b"}, {"to": "c", "from": "b"}]}, "networks[1].from"),
        ({"networks": [{"to": "a", "nic": 4000}, {"to": "c", "nic": 4000}]}, "networks[1].nic"),
        ({"options": []}, "options"),
        ({"options": {"priority": "urgent"}}, "options.priority"),
        ({"options": {"verify": "on"}}, "options.verify"),
        ({"options": {"encryption": True}}, "options.encryption"),
        ({"options": {"streams": 2**32}}, "options.streams"),
        ({"options": {"bandwidth_bytes_per_s": 2**64}}, "options.bandwidth_bytes_per_s"),
        ({"options": {"network_timeout_s": -1}}, "options.network_timeout_s"),
        ({"options": {"network_timeout_s": float("nan")}}, "options.network_timeout_s"),
        ({"options": {"network_timeout_s": 10**400}}, "options.network_timeout_s"),
        ([], ""),
    ],
)
def test_parse_names_the_field_that_cant_be(document: object, field: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse(json.dumps(document))
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"host": "a", "host": "b"}', "host"),
        ("{", ""),
        ("[" * 100_000, ""),
        ('{"version": ' + "1" * 5000 + "}", ""),
        (" " * (MAX_CHARS + 1), ""),
    ],
)
def test_parse_of_what_is_no_json_object_is_a_typed_error(text: str, field: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse(text)
    assert caught.value.field == field

"""QEMU is asked once; its answers are understood; what it speaks is what vmx speaks."""

import json
from pathlib import Path
from typing import Any

import pytest

from hostd.host import facts
from hostd.host.capability import CapabilityError, load_or_probe, parse_answers
from hostd.host.facts import machine_order
from vmx.stream import OLDEST_STREAM_VERSION, STREAM_VERSION


def test_stream_versions_are_those_of_vmx() -> None:
    assert (facts.STREAM_VERSION_MIN, facts.STREAM_VERSION_MAX) == (OLDEST_STREAM_VERSION, STREAM_VERSION)


def test_parse_answers_gives_versioned_machines_newest_first() -> None:
    names = ["q35", "pc", "none", "pc-i440fx-7.2", "pc-q35-10.0", "pc-q35-9.2", "pc-q35-4.0.1", "microvm"]
    messages: list[dict[str, Any]] = [
        {"QMP": {}},
        {"return": {}},
        {"return": {"qemu": {"major": 10, "minor": 0, "micro": 13}}},
        {"return": [{"name": name} for name in names]},
        {"event": "SHUTDOWN"},
        {"return": [{"name": "qemu64"}, {"name": "EPYC"}]},
        {"return": {}},
    ]
    output = "\n".join(json.dumps(message) for message in messages)
    version, machines, models = parse_answers(output)
    assert version == "10.0.13"
    assert machines == ("pc-q35-10.0", "pc-q35-9.2", "pc-q35-4.0.1", "pc-i440fx-7.2")
    assert models == ("EPYC", "qemu64")


@pytest.mark.parametrize("output", ["", "{", '{"return": {}}', '{"return": 1}\n' * 5])
def test_parse_answers_that_are_none_raises(output: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_answers(output)


def test_machine_order_prefers_q35_then_the_newest() -> None:
    assert max(["pc-i440fx-10.1", "pc-q35-9.2", "pc-q35-10.0"], key=machine_order) == "pc-q35-10.0"


@pytest.fixture
def fake_binary(tmp_path: Path) -> Path:
    """Not QEMU: a script that answers as QEMU does, and counts how often it was asked."""
    answers = [
        {"return": {}},
        {"return": {"qemu": {"major": 7, "minor": 2, "micro": 22}}},
        {"return": [{"name": "pc-q35-7.2"}]},
        {"return": [{"name": "qemu64"}]},
        {"return": {}},
    ]
    path = tmp_path / "fake-qemu"
    lines = "\n".join(json.dumps(answer) for answer in answers)
    path.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/count\ncat <<'END'\n{lines}\nEND\n")
    path.chmod(0o755)
    return path


def test_load_or_probe_asks_once_until_the_binary_changes(fake_binary: Path, tmp_path: Path) -> None:
    cache = tmp_path / "capability.json"
    first = load_or_probe(fake_binary, "tcg", cache)
    assert load_or_probe(fake_binary, "tcg", cache) == first
    assert (tmp_path / "count").read_text() == "asked\n" * 2, "once without and once with the accelerator"
    assert (first.qemu_version, first.accelerator) == ("7.2.22", "tcg")
    fake_binary.write_text(fake_binary.read_text().replace('"micro": 22', '"micro": 23'))
    assert load_or_probe(fake_binary, "tcg", cache).qemu_version == "7.2.23"
    cache.write_text("{")
    assert load_or_probe(fake_binary, "tcg", cache).qemu_version == "7.2.23"


def test_load_or_probe_accelerator_that_runs_no_guest_is_refused_or_left(
    fake_binary: Path, tmp_path: Path
) -> None:
    """The script's exit status isn't the one that only a running guest gives."""
    assert load_or_probe(fake_binary, "auto", tmp_path / "c").accelerator == "tcg"
    with pytest.raises(CapabilityError):
        load_or_probe(fake_binary, "kvm", tmp_path / "c")


def test_load_or_probe_no_binary_or_nonsense_says_so(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError):
        load_or_probe(tmp_path / "none", "tcg", tmp_path / "c")
    with pytest.raises(CapabilityError):
        load_or_probe(Path("/bin/true"), "tcg", tmp_path / "c")

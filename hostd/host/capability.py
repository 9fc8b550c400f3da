"""What this host can run: asked of its QEMU binary once, and kept until the binary changes.

QEMU's own answers (QMP query-version, query-machines, query-cpu-definitions, query-cpu-model-expansion) are the table;
what its CPU models have depends on the accelerator, so that is asked when the accelerator is chosen. Whether one works
is tried, not looked up: /dev/kvm may be there while every guest on it dies. The trial is a QEMU with a ROM of five
bytes of program that ends it with a status of our choice: that one came back proves that a CPU was made and ran.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from hostd.host import cpu_features
from hostd.host.cpu_features import CpuFeatures
from hostd.host.facts import Capability, machine_order
from runtime.faults import CannotAccessFile, FileNotFound
from runtime.ondisk.durable import read_bounded, write_durably

_log = structlog.get_logger(__name__)

_CACHE_FORMAT = 2
_PROBE_TIMEOUT_S = 20.0
_CACHE_MAX_BYTES = 1 << 20
_VERSIONED = re.compile(r"pc-(q35|i440fx)-[0-9]+\.[0-9]+(\.[0-9]+)?")
_QUESTIONS = ("qmp_capabilities", "query-version", "query-machines", "query-cpu-definitions", "quit")

_WITHOUT_A_MACHINE = (
    *("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"),
    *("-qmp", "stdio"),
)

_ROM_BYTES = 64 * 1024
_RESET_VECTOR = 0xFFF0
# mov al, 10h; out f4h, al; hlt: isa-debug-exit ends QEMU with status (value << 1) | 1.
_ROM_PROGRAM = bytes((0xB0, 0x10, 0xE6, 0xF4, 0xF4))
_ROM_STATUS = (0x10 << 1) | 1


class CapabilityError(Exception):
    """QEMU can't be run, or its answers can't be understood; `binary` and `reason` say more."""

    def __init__(self, binary: str, reason: str) -> None:
        super().__init__(f"{binary}: {reason}")
        self.binary = binary
        self.reason = reason


def load_or_probe(binary: Path, accelerator: str, cache: Path) -> Capability:
    """The capability, from the cache where binary and wish are the same as then; blocks for about a second otherwise.

    `accelerator`: "auto", "tcg" or "kvm"; auto is kvm only where it works.

    :raises CapabilityError: QEMU can't be run, or kvm was asked for and doesn't work.
    """
    key = _cache_key(binary, accelerator)
    cached = _read_cache(cache, key)
    if cached is not None:
        return cached
    version, machines, models = _ask(binary)
    chosen = _choose_accelerator(binary, accelerator)
    capability = Capability(version, machines, models, chosen, _ask_cpu_models(binary, models, chosen))
    write_durably(cache, json.dumps({"key": key, "capability": _to_json(capability)}).encode())
    _log.info("qemu_probed", qemu_version=version, machine_types=len(machines), accelerator=chosen)
    return capability


def parse_answers(output: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Version, versioned machine types (newest first) and CPU models in the output of a QMP session of _QUESTIONS.

    :raises ValueError: they aren't in it.
    """
    messages: list[Mapping[str, Any]] = [json.loads(line) for line in output.splitlines() if line.strip()]
    answers = [message["return"] for message in messages if "return" in message]
    if len(answers) < len(_QUESTIONS) - 1:
        raise ValueError(f"{len(answers)} answers to {len(_QUESTIONS)} questions")
    try:
        version = answers[1]["qemu"]
        text = f"{version['major']}.{version['minor']}.{version['micro']}"
        machines = [str(machine["name"]) for machine in answers[2]]
        models = sorted(str(model["name"]) for model in answers[3])
    except (KeyError, TypeError) as error:
        raise ValueError(f"an answer has no {error}") from error
    versioned = sorted(filter(_VERSIONED.fullmatch, machines), key=machine_order, reverse=True)
    return text, tuple(versioned), tuple(models)


def _cache_key(binary: Path, accelerator: str) -> list[object]:
    try:
        status = binary.resolve(strict=True).stat()
    except OSError as error:
        raise CapabilityError(str(binary), f"it can't be found: {error.strerror}") from error
    has_kvm = Path("/dev/kvm").exists()
    return [_CACHE_FORMAT, str(binary), status.st_mtime_ns, status.st_size, accelerator, has_kvm]


def _read_cache(cache: Path, key: list[object]) -> Capability | None:
    try:
        stored = json.loads(read_bounded(cache, _CACHE_MAX_BYTES))
        if stored["key"] != key:
            return None
        fields = stored["capability"]
        return Capability(
            str(fields["qemu_version"]),
            tuple(map(str, fields["machine_types"])),
            tuple(map(str, fields["cpu_models"])),
            str(fields["accelerator"]),
            cpu_features.from_json(fields["cpu"]),
        )
    except (FileNotFound, CannotAccessFile, ValueError, KeyError, TypeError, AttributeError):
        return None  # a cache: asked again


def _to_json(capability: Capability) -> dict[str, object]:
    return {
        "qemu_version": capability.qemu_version,
        "machine_types": capability.machine_types,
        "cpu_models": capability.cpu_models,
        "accelerator": capability.accelerator,
        "cpu": cpu_features.to_json(capability.cpu),
    }


def _ask_cpu_models(binary: Path, models: Sequence[str], accelerator: str) -> CpuFeatures:
    """What each model has, with this accelerator. A QEMU that can't tell is no error: then it isn't known."""
    richest = "host" if accelerator == "kvm" else "max"
    asked = [model for model in models if model != "base" and (model != "host" or accelerator == "kvm")]
    questions = [{"execute": "qmp_capabilities"}, *cpu_features.questions(asked), {"execute": "quit"}]
    text = "".join(json.dumps(question) + "\n" for question in questions)
    done = _run([str(binary), *_WITHOUT_A_MACHINE, "-accel", accelerator], text)
    try:
        return cpu_features.parse_expansions(asked, done.stdout, richest)
    except ValueError as error:
        _log.warning("cpu_models_unknown", binary=str(binary), reason=str(error))
        return CpuFeatures()


def _ask(binary: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    questions = "".join(json.dumps({"execute": question}) + "\n" for question in _QUESTIONS)
    done = _run([str(binary), *_WITHOUT_A_MACHINE], questions)
    try:
        return parse_answers(done.stdout)
    except ValueError as error:
        reason = done.stderr.strip()[-300:] or str(error)
        raise CapabilityError(str(binary), f"its answers can't be understood: {reason}") from error


def _choose_accelerator(binary: Path, wanted: str) -> str:
    if wanted == "tcg":
        return "tcg"
    works = Path("/dev/kvm").exists() and _kvm_runs(binary)
    if wanted == "kvm" and not works:
        raise CapabilityError(
            str(binary), "HOST_ACCELERATOR is kvm, but no guest runs with it on this machine"
        )
    return "kvm" if works else "tcg"


def _kvm_runs(binary: Path) -> bool:
    rom = bytearray(b"\xf4" * _ROM_BYTES)
    rom[_RESET_VECTOR : _RESET_VECTOR + len(_ROM_PROGRAM)] = _ROM_PROGRAM
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trial.rom"
        path.write_bytes(rom)
        arguments = ["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16", "-bios", str(path)]
        arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        arguments += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        try:
            # A QEMU that aborts here is an answer, not worth a core file.
            done = _run(["/bin/sh", "-c", 'ulimit -c 0; exec "$0" "$@"', str(binary), *arguments], "")
        except CapabilityError:
            return False
    return done.returncode == _ROM_STATUS


def _run(command: list[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CapabilityError(command[0], f"it can't be run: {error}") from error

"""The CPU that a guest is fixed to, at the process that makes it: exactly this one, or none."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostd.host.capability import load_or_probe
from hostd.host.cpu_features import CpuFeatures, fix_guest_cpu, parse_cpu_model, parse_expansions
from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.cpu_baselines import BASELINE_OF
from runtime.faults import FeatureRequirementsNotMet, InvalidVmConfig
from runtime.rpc.faults import remote_faults
from tests.framework import fake_cpu_models
from tests.framework.guest_processes import FAKE_QEMU, qemu_binary
from tests.framework.vmx_hosts import VmxHosts
from tests.framework.vmx_invariants import assert_heart_beats, assert_vm_is_off, migrate

MODELS = fake_cpu_models.FEATURES
HOST = CpuFeatures(MODELS["max"], "", MODELS)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[VmxHosts]:
    made = VmxHosts(tmp_path, FAKE_QEMU, ram_bytes=32 << 20, stamper_mib=8)
    yield made
    await made.close()


def haswell(*more: str) -> vm_config_pb2.GuestCpu:
    """The CPU under intel-haswell, and features more."""
    cpu = fix_guest_cpu(HOST, "qemu64", BASELINE_OF["intel-haswell"], "tcg", "esx01")
    assert cpu is not None
    cpu.features.extend(more)
    kept = [feature for feature in cpu.disabled_features if feature not in more]
    del cpu.disabled_features[:]
    cpu.disabled_features.extend(kept)
    return cpu


def cpu_options(hosts: VmxHosts) -> list[str]:
    """What the living guests were given as their `-cpu`."""
    lines = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in hosts.qemu_pids()]
    return [line[line.index("-cpu") + 1] for line in lines if "-cpu" in line]


async def test_guest_runs_on_its_fixed_cpu_and_takes_it_along(hosts: VmxHosts) -> None:
    hosts.guest_cpu = cpu = haswell()
    vmx = await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    (option,) = cpu_options(hosts)
    switched = frozenset(cpu.features), frozenset(cpu.disabled_features)
    assert parse_cpu_model(option) == ("Haswell", *switched)
    await migrate(hosts, vmx, 1)
    await assert_heart_beats(hosts)
    assert cpu_options(hosts) == [option]


async def test_power_on_with_a_feature_that_qemu_cannot_make_leaves_nothing(hosts: VmxHosts) -> None:
    hosts.guest_cpu = haswell("x2apic")
    with pytest.raises(FeatureRequirementsNotMet) as caught:
        await hosts.power_on()
    assert (caught.value.feature, caught.value.host) == ("cpuid.x2apic", "esx01")
    assert await hosts.started[0].ended() == 0
    await assert_vm_is_off(hosts)


async def test_destination_that_cannot_make_the_cpu_refuses_and_the_guest_runs_on(hosts: VmxHosts) -> None:
    hosts.guest_cpu = haswell()
    await hosts.power_on()
    await hosts.heartbeats_beyond(5)
    hosts.guest_cpu = haswell("rdseed")
    spec = hosts.spec(hosts.hosts[0], hosts.hosts[1])
    vmx = await hosts.start_vmx(hosts.hosts[1])
    request = service_pb2.PrepareDestinationRequest(spec=spec, place=hosts.place(vmx.host))
    with pytest.raises(FeatureRequirementsNotMet) as caught, remote_faults("vmx"):
        await vmx.stub.PrepareDestination(request, timeout=30)
    assert (caught.value.feature, caught.value.host) == ("cpuid.rdseed", "esx02")
    assert await vmx.ended() == 0
    await assert_heart_beats(hosts)


async def test_names_that_would_be_options_do_not_reach_qemu(hosts: VmxHosts) -> None:
    hosts.guest_cpu = haswell("avx,host-phys-bits=on")
    with pytest.raises(InvalidVmConfig):
        await hosts.power_on()
    await assert_vm_is_off(hosts)


@pytest.mark.qemu
def test_every_model_and_baseline_gives_exactly_the_fixed_features_in_qemu(tmp_path: Path) -> None:
    """QEMU, told all features on and off, has these and no others, and none that its emulator can't make."""
    binary = qemu_binary()
    if binary is None:
        pytest.skip("no qemu-system-x86_64 on this machine")
    host = load_or_probe(binary, "tcg", tmp_path / "c").cpu
    wanted = [fix_guest_cpu(host, model, None, "tcg", "esx01") for model in sorted(host.models)]
    wanted += [fix_guest_cpu(host, "qemu64", baseline, "tcg", "esx01") for baseline in host.offered()]
    fixed = [cpu for cpu in wanted if cpu is not None]
    assert len(fixed) == len(wanted) > 100
    expanded = expand(binary, fixed)
    for number, cpu in enumerate(fixed):
        assert set(cpu.features) <= host.features
        assert expanded[number] == set(cpu.features), cpu.model


def expand(binary: Path, cpus: list[vm_config_pb2.GuestCpu]) -> list[frozenset[str]]:
    """The features that QEMU gives these CPUs, by its own word."""
    questions: list[dict[str, object]] = [{"execute": "qmp_capabilities"}]
    for cpu in cpus:
        switches = {**dict.fromkeys(cpu.features, True), **dict.fromkeys(cpu.disabled_features, False)}
        model = {"name": cpu.model, "props": switches}
        questions.append(
            {"execute": "query-cpu-model-expansion", "arguments": {"type": "static", "model": model}}
        )
    words = "-machine none -accel tcg -nodefaults -display none -S -qmp stdio"
    done = subprocess.run(
        [str(binary), *words.split()],
        input="".join(json.dumps(question) + "\n" for question in [*questions, {"execute": "quit"}]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    names = [str(number) for number in range(len(cpus))]
    known = parse_expansions(names, done.stdout, "0").models
    return [known[name] for name in names]

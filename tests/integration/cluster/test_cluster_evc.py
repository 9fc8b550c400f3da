"""EVC through the whole chain: hosts of two generations, modes that are set, raised, lowered and refused."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from demo.cluster_layout import PROJECT
from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, task_pb2
from proto.vpxd.v1 import clusters_pb2, service_pb2
from runtime.faults import (
    EvcAdmissionFailed,
    FeatureRequirementsNotMet,
    InvalidArgument,
    InvalidPowerState,
    VimFault,
)
from tests.framework.cluster_rig import (
    ClusterRig,
    cluster_rig,
    failure,
    refusal,
    removed_afterwards,
    small_vm,
)

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]
SANDYBRIDGE, HASWELL = "intel-sandybridge", "intel-haswell"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterRig]:
    """esx01 is what it is, esx02 is an older machine."""
    async with cluster_rig(tmp_path_factory.mktemp("c"), 2, cpu_generations=("", SANDYBRIDGE)) as made:
        yield made


async def set_mode(rig: ClusterRig, mode: str) -> clusters_pb2.GetEvcResponse:
    return await rig.client.call(rig.client.clusters.SetEvc, clusters_pb2.SetEvcRequest(mode=mode))


async def get_evc(rig: ClusterRig) -> clusters_pb2.GetEvcResponse:
    return await rig.client.call(rig.client.clusters.GetEvc, clusters_pb2.GetEvcRequest())


async def refused(rig: ClusterRig, mode: str) -> list[VimFault]:
    """The mode can't be set; the faults that say why, the outer one first."""
    before = await get_evc(rig)
    with pytest.raises(EvcAdmissionFailed) as caught:
        await set_mode(rig, mode)
    assert await get_evc(rig) == before
    faults: list[VimFault] = [caught.value]
    while isinstance(cause := faults[-1].__cause__, VimFault):
        faults.append(cause)
    return faults


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def without_mode(rig: ClusterRig) -> AsyncIterator[None]:
    yield
    await set_mode(rig, "")


async def create(rig: ClusterRig, name: str, host: str, cpu_model: str = "qemu64") -> None:
    config = small_vm()
    config.cpu_model = cpu_model
    await rig.create(name, host, config=config)


async def test_hosts_tell_their_generation_and_modes(rig: ClusterRig) -> None:
    new, old = (await rig.host("esx01")).info.capability, (await rig.host("esx02")).info.capability
    assert "avx2" in new.cpu_features
    assert "avx2" not in old.cpu_features
    assert new.cpu_vendor == ""
    assert old.cpu_vendor == "GenuineIntel"
    assert old.evc_modes[-1] == SANDYBRIDGE
    assert HASWELL in new.evc_modes
    modes = (
        await rig.client.call(rig.client.clusters.ListEvcModes, clusters_pb2.ListEvcModesRequest())
    ).modes
    assert [mode.key for mode in modes if mode.key in old.evc_modes] == list(old.evc_modes)
    haswell = next(mode for mode in modes if mode.key == HASWELL)
    assert (haswell.vendor, haswell.tier, haswell.cpu_model) == ("intel", 7, "Haswell")
    assert "avx2" in haswell.added_features


async def test_mode_that_a_host_lacks_is_refused_with_host_and_feature(rig: ClusterRig) -> None:
    outer, cause = await refused(rig, HASWELL)
    assert isinstance(outer, EvcAdmissionFailed)
    assert isinstance(cause, EvcAdmissionFailed)
    assert (cause.host, cause.feature, cause.mode) == ("esx02", "cpuid.erms", HASWELL)
    fits = {fit.mode: fit.findings for fit in (await get_evc(rig)).modes}
    assert not fits[SANDYBRIDGE]
    assert len(fits[HASWELL]) == 1
    assert SANDYBRIDGE in fits[HASWELL][0].remedy
    with pytest.raises(InvalidArgument):
        await set_mode(rig, "sandybridge")


async def test_vm_without_evc_is_refused_with_each_feature_and_the_baseline(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "wide01"):
        await create(rig, "wide01", "esx01", "max")
        await rig.power_on("wide01")
        cpu = (await rig.vm("wide01")).config.guest_cpu
        assert "avx2" in cpu.features
        assert cpu.baseline == ""
        request = service_pb2.CheckMigrateRequest(vm="wide01", host="esx02")
        (found,) = (await rig.client.call(rig.client.stub.CheckMigrate, request)).hosts
        features = {finding.fault.details["feature"]: finding.remedy for finding in found.findings}
        assert {"cpuid.avx2", "cpuid.fma", "cpuid.bmi2"} <= set(features)
        assert SANDYBRIDGE in features["cpuid.avx2"]
        before = await rig.picture()
        with pytest.raises(FeatureRequirementsNotMet):
            await rig.migrate("wide01", "esx02")
        after = await rig.picture()
        assert {**after, "listed": before["listed"]} == before
        # The destination itself refuses what vpxd wouldn't have sent.
        spec = await rig.spec("wide01", "esx02")
        async with rig.vpxa("esx02") as stub:
            fault = await refusal(
                stub.PrepareDestination(operations_pb2.PrepareDestinationRequest(spec=spec), timeout=20)
            )
        assert isinstance(fault, FeatureRequirementsNotMet)
        assert "avx2" in str(fault)


async def test_vm_under_the_clusters_mode_moves_there_and_back_with_the_same_cpu(rig: ClusterRig) -> None:
    assert (await set_mode(rig, SANDYBRIDGE)).mode == SANDYBRIDGE
    async with removed_afterwards(rig, "evc01"):
        await create(rig, "evc01", "esx01", "max")
        await rig.power_on("evc01")
        cpu = (await rig.vm("evc01")).config.guest_cpu
        assert (cpu.model, cpu.baseline) == ("SandyBridge", SANDYBRIDGE)
        assert "avx" in cpu.features
        assert "avx2" not in cpu.features
        text = (rig.home("evc01") / "evc01.vmx").read_text()
        assert f'vpx.guestCpu.baseline = "{SANDYBRIDGE}"' in text
        for host in ("esx02", "esx01"):
            await rig.migrate("evc01", host)
            await rig.assert_alive("evc01", host)
            assert (await rig.vm("evc01")).config.guest_cpu == cpu
        await rig.power_off("evc01")
        assert not (await rig.vm("evc01")).config.HasField("guest_cpu")
        assert 'vpx.guestCpu.model = ""' in (rig.home("evc01") / "evc01.vmx").read_text()


async def test_lowering_names_the_vm_that_stands_against_it_and_raising_waits_for_its_power_cycle(
    rig: ClusterRig,
) -> None:
    await set_mode(rig, "intel-westmere")
    async with removed_afterwards(rig, "low01"):
        await create(rig, "low01", "esx02")
        await rig.power_on("low01")
        _outer, cause = await refused(rig, "intel-penryn")
        assert "low01" in str(cause)
        assert isinstance(cause, EvcAdmissionFailed)
        assert cause.feature == "cpuid.aes"
        await set_mode(rig, SANDYBRIDGE)
        assert (await rig.vm("low01")).config.guest_cpu.baseline == "intel-westmere", "until its power cycle"
        await rig.migrate("low01", "esx01")
        await set_mode(rig, "intel-westmere")  # nothing runs above it
        await set_mode(rig, SANDYBRIDGE)
        await rig.power_off("low01")
        await rig.power_on("low01")
        assert (await rig.vm("low01")).config.guest_cpu.baseline == SANDYBRIDGE
        assert "low01" in str((await refused(rig, "intel-westmere"))[1])
        await set_mode(rig, "")  # disabled: the VM keeps its CPU
        assert (await rig.vm("low01")).config.guest_cpu.baseline == SANDYBRIDGE


async def test_vms_own_mode_is_within_its_clusters_and_only_for_one_that_is_off(rig: ClusterRig) -> None:
    async def set_vm(mode: str) -> task_pb2.TaskInfo:
        request = clusters_pb2.SetVmEvcRequest(vm="own01", mode=mode)
        task = await rig.client.call(rig.client.clusters.SetVmEvc, request)
        return await rig.client.wait(task.id, 20)

    async with removed_afterwards(rig, "own01"):
        await create(rig, "own01", "esx01")
        await set_vm("intel-nehalem")
        await rig.power_on("own01")
        assert (await rig.vm("own01")).config.guest_cpu.baseline == "intel-nehalem"
        with pytest.raises(InvalidPowerState):
            await set_vm("intel-penryn")
        await rig.power_off("own01")
        await set_mode(rig, "intel-penryn")
        with pytest.raises(EvcAdmissionFailed):
            await set_vm(HASWELL)
        with pytest.raises(EvcAdmissionFailed):
            await rig.power_on("own01")
        assert (await rig.vm("own01")).power_state == host_pb2.POWER_STATE_POWERED_OFF
        assert (await rig.host_itself("esx01")).usage.memory_reserved_bytes == 0
        await set_vm("")
        await rig.power_on("own01")
        assert (await rig.vm("own01")).config.guest_cpu.baseline == "intel-penryn"


async def test_vm_above_its_hosts_generation_is_not_started(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "high01"):
        await create(rig, "high01", "esx02", "qemu64,+avx2")
        with pytest.raises(FeatureRequirementsNotMet) as caught:
            await rig.power_on("high01")
        assert (caught.value.feature, caught.value.host) == ("cpuid.avx2", "esx02")


async def test_hostd_that_begins_anew_still_knows_the_running_guests_cpu(rig: ClusterRig) -> None:
    await set_mode(rig, SANDYBRIDGE)
    async with removed_afterwards(rig, "kept01"):
        await create(rig, "kept01", "esx01")
        await rig.power_on("kept01")
        cpu = (await rig.vm("kept01")).config.guest_cpu
        await rig.cluster.end_daemon("esx01-hostd", kill=True)
        await rig.start_daemon("esx01-hostd")
        await rig.until_connected()
        assert (await rig.vm("kept01")).config.guest_cpu == cpu
        await rig.migrate("kept01", "esx02")


async def test_host_that_cannot_offer_the_clusters_mode_is_not_added(rig: ClusterRig) -> None:
    stub = rig.client.stub
    task = await rig.client.call(stub.RemoveHost, service_pb2.RemoveHostRequest(host="esx02"))
    await rig.client.wait(task.id, 20)
    await set_mode(rig, HASWELL)
    request = service_pb2.AddHostRequest(name="esx02")
    task = await rig.client.call(stub.AddHost, request)
    fault = failure(await rig.ended(task.id))
    assert isinstance(fault, EvcAdmissionFailed)
    assert (fault.host, fault.mode, fault.feature) == ("esx02", HASWELL, "cpuid.erms")
    await set_mode(rig, SANDYBRIDGE)
    task = await rig.client.call(stub.AddHost, request)
    await rig.client.wait(task.id, 30)
    assert len((await rig.client.call(stub.ListHosts, service_pb2.ListHostsRequest())).hosts) == 2


async def test_command_line_shows_sets_and_checks(rig: ClusterRig) -> None:
    async def vpx(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "vpxd.cli", "--config", str(rig.layout.client_directory), *words],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    done = await vpx("cluster", "evc", "set", SANDYBRIDGE)
    assert done.returncode == 0, done.stderr
    assert SANDYBRIDGE in done.stdout
    shown = (await vpx("cluster", "evc", "show")).stdout
    assert "EVC is disabled" not in shown
    assert HASWELL in shown
    checked = await vpx("cluster", "evc", "check", HASWELL)
    assert "esx02" in checked.stdout
    assert "erms" in checked.stdout
    refused_set = await vpx("cluster", "evc", "set", HASWELL)
    assert refused_set.returncode != 0
    assert "esx02" in refused_set.stderr
    assert (await vpx("cluster", "evc", "set", "none")).returncode == 0

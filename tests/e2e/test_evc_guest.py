"""EVC with a guest that executes the features: hosts of two generations, Linux, AVX2.

The guest looks at CPUID once, when it starts, as programs do, and from then on executes what it has found. Its lines on
the heartbeat port say of each execution whether the processor knew the instruction (images/cpu_exerciser.c).
"""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from demo.local_cluster import GUEST_IMAGES
from images.cmdline import kernel_command_line
from images.guest_output import CpuExercise, parse_cpu_exercise
from proto.vpxd.v1 import clusters_pb2, service_pb2
from runtime.faults import FeatureRequirementsNotMet
from tests.framework.cluster_rig import ClusterRig, linux_cluster_rig, removed_afterwards, small_vm, until

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.cluster,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
    pytest.mark.skipif(
        not (GUEST_IMAGES / "vmlinuz").is_file(), reason="the guest image isn't built: make guest"
    ),
]
SANDYBRIDGE, HASWELL = "intel-sandybridge", "intel-haswell"
BOOT_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterRig]:
    """esx01 and esx03 are what they are, esx02 is older."""
    generations = ("", SANDYBRIDGE, "")
    async with linux_cluster_rig(tmp_path_factory.mktemp("c"), 3, generations) as made:
        yield made


async def start(rig: ClusterRig, name: str, cpu_model: str) -> None:
    """A Linux VM on esx01 that executes SSE4.2, POPCNT, AVX and AVX2 where it finds them."""
    config = small_vm(ram_mib=160)
    config.cpu_model = cpu_model
    config.boot.kernel_command_line = (
        kernel_command_line(stamper_mib=8, rate=5) + " cpu.exercise=sse4.2,popcnt,avx,avx2"
    )
    await rig.create(name, "esx01", config=config)
    await rig.power_on(name)


def exercises(rig: ClusterRig, name: str) -> list[CpuExercise]:
    """All that the guest said of its CPU so far."""
    log = rig.home(name) / "heartbeat.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [parsed for parsed in map(parse_cpu_exercise, lines) if parsed is not None]


async def more(rig: ClusterRig, name: str, count: int = 5, within_s: float = 20.0) -> list[CpuExercise]:
    """`count` executions more, all of them."""
    before = len(exercises(rig, name))
    await until(lambda: len(exercises(rig, name)) >= before + count, f"{name} executes", within_s)
    return exercises(rig, name)[before:]


def assert_unbroken(found: list[CpuExercise]) -> None:
    """One boot, no execution left out, none that went wrong."""
    assert [one.sequence for one in found] == list(range(len(found)))
    assert {result for one in found for result in one.results.values()} <= {"ok", "absent"}


async def set_mode(rig: ClusterRig, mode: str) -> None:
    await rig.client.call(rig.client.clusters.SetEvc, clusters_pb2.SetEvcRequest(mode=mode))


async def test_guest_without_evc_is_refused_naming_avx2_and_the_baseline_and_moves_where_it_can(
    rig: ClusterRig,
) -> None:
    async with removed_afterwards(rig, "wide01"):
        await start(rig, "wide01", "max")
        first = await more(rig, "wide01", within_s=BOOT_S)
        assert first[-1].results == {"sse4.2": "ok", "popcnt": "ok", "avx": "ok", "avx2": "ok"}
        request = service_pb2.CheckMigrateRequest(vm="wide01", host="esx02")
        (found,) = (await rig.client.call(rig.client.stub.CheckMigrate, request)).hosts
        remedies = {one.fault.details["feature"]: one.remedy for one in found.findings if one.error}
        assert SANDYBRIDGE in remedies["cpuid.avx2"]
        with pytest.raises(FeatureRequirementsNotMet):
            await rig.migrate("wide01", "esx02")
        await rig.migrate("wide01", "esx03")  # an equal host
        last = await more(rig, "wide01")
        assert last[-1].results["avx2"] == "ok"
        assert_unbroken(exercises(rig, "wide01"))


async def test_guest_under_evc_moves_between_generations_and_executes_all_the_time(rig: ClusterRig) -> None:
    await set_mode(rig, SANDYBRIDGE)
    async with removed_afterwards(rig, "evc01"):
        await start(rig, "evc01", "qemu64")
        first = await more(rig, "evc01", within_s=BOOT_S)
        assert first[-1].results == {"sse4.2": "ok", "popcnt": "ok", "avx": "ok", "avx2": "absent"}
        for host in ("esx02", "esx01"):
            await rig.migrate("evc01", host)
            assert (await more(rig, "evc01"))[-1].results == first[-1].results
            await rig.assert_alive("evc01", host)
        assert_unbroken(exercises(rig, "evc01"))
    await set_mode(rig, "")


async def test_guest_with_its_own_mode_moves_without_one_of_its_cluster(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "own01"):
        config = small_vm(ram_mib=160)
        options = kernel_command_line(stamper_mib=8, rate=5) + " cpu.exercise=sse4.2,avx,avx2"
        config.boot.kernel_command_line = options
        config.evc_mode = "intel-westmere"
        await rig.create("own01", "esx01", config=config)
        await rig.power_on("own01")
        first = await more(rig, "own01", within_s=BOOT_S)
        assert first[-1].results == {"sse4.2": "ok", "avx": "absent", "avx2": "absent"}
        await rig.migrate("own01", "esx02")
        await more(rig, "own01")
        assert_unbroken(exercises(rig, "own01"))

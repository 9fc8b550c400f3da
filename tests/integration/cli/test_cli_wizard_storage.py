"""The Migrate wizard's storage step on a terminal against a real vpxd with FAKE hosts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import vm_config_pb2
from proto.vpxd.v1 import service_pb2, storage_pb2
from tests.framework.wizard_scene import WizardScene, finished, rows, through_priority, wizard_scene

Locator = service_pb2.DiskLocator


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WizardScene]:
    async with wizard_scene(tmp_path / "vpxd", monkeypatch) as running:
        yield running


@pytest.mark.parametrize(
    ("answer", "disk_format"),
    [
        ("same format as source", vm_config_pb2.DISK_FORMAT_UNSPECIFIED),
        ("thin", vm_config_pb2.DISK_FORMAT_THIN),
        ("thick lazy zeroed", vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED),
        ("thick eager zeroed", vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED),
    ],
)
async def test_wizard_format_is_sent(
    scene: WizardScene, answer: str, disk_format: vm_config_pb2.DiskFormat.ValueType
) -> None:
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "2")
        await wizard.answer("Place the files", "together")
        await wizard.answer("Virtual disk format of the virtual machine", answer)
        await wizard.answer("VM storage policy", "")
        await wizard.answer("Datastore of the virtual machine", "fast")
        await wizard.answer("Compatibility", "")
        shown = await finished(wizard)
    assert f"to fast, {answer}, policy kept" in shown
    expected = await scene.request("cold01", host="esx01", datastore="fast", format=disk_format)
    assert scene.arrived == [expected]
    disk = (await scene.rig.vm("cold01")).config.disks[0]
    assert disk.path == "[fast] cold01/disk0.vmdk"
    assert disk_format in (disk.format, vm_config_pb2.DISK_FORMAT_UNSPECIFIED)


@pytest.mark.parametrize(("answer", "policy"), [("keep", ""), ("none", "-"), ("gold", "gold")])
async def test_wizard_policy_is_sent(scene: WizardScene, answer: str, policy: str) -> None:
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "3")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Place the files", "")
        await wizard.answer("Virtual disk format", "")
        await wizard.answer("VM storage policy", answer)
        await wizard.answer("Datastore of the virtual machine", "shared")
        await wizard.answer("Compatibility", "")
        await finished(wizard)
    assert scene.arrived == [await scene.request("cold01", host="esx02", datastore="shared", policy=policy)]


@pytest.mark.parametrize("kept", [False, True])
async def test_wizard_datastores_stand_in_groups_with_space_and_reason(
    scene: WizardScene, kept: bool
) -> None:
    """The groups are those of the policy that holds afterwards: the chosen one, or the one that is kept."""
    vm = await scene.id_of("cold01")
    if kept:
        await scene.rig.storage.SetVmPolicies(
            storage_pb2.SetVmPoliciesRequest(vm=vm, disk_policies={2000: "gold"})
        )
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "2")
        await wizard.answer("Place the files", "")
        await wizard.answer("Virtual disk format", "")
        await wizard.answer("VM storage policy", "keep" if kept else "gold")
        shown = await wizard.answer("Datastore of the virtual machine", "fast")
        panel = await wizard.answer("c: choose again", "q")
        assert await wizard.end() == 130
    lines = rows(shown)
    compatible, incompatible = lines.index("Compatible with gold"), lines.index("Incompatible with gold")
    assert compatible < lines.index("*1 shared 50.0 GiB 100 GiB") < incompatible
    reason = "the policy gold isn't satisfied: fast doesn't have the tag tier:gold"
    assert lines.index("2 fast 15.0 GiB 20.0 GiB") > incompatible
    assert f"fast: {reason}" in lines
    assert "error: the policy gold isn't satisfied" in panel
    assert "remedy: choose a datastore that has it" in panel
    assert not scene.arrived


async def test_wizard_per_disk_sends_each_disks_own_datastore_format_and_policy(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "2")
        await wizard.answer("Place the files", "configure per disk")
        await wizard.answer("VM storage policy of the home", "none")
        await wizard.answer("Datastore of the home", "local")
        await wizard.answer("Virtual disk format of disk 2000", "thick eager zeroed")
        await wizard.answer("VM storage policy of disk 2000", "keep")
        await wizard.answer("Datastore of disk 2000", "fast")
        await wizard.answer("Virtual disk format of disk 2001", "1")
        await wizard.answer("VM storage policy of disk 2001", "gold")
        await wizard.answer("Datastore of disk 2001", "stay")
        await wizard.answer("Compatibility", "")
        await through_priority(wizard)
        shown = await finished(wizard)
    eager = vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED
    disks = [Locator(key=2000, datastore="fast", format=eager), Locator(key=2001, policy="gold")]
    expected = await scene.request("web01", host="esx01", datastore="local", policy="-", disks=disks)
    assert scene.arrived == [expected]
    lines = rows(shown)
    assert "Home to local, policy none" in lines
    assert (
        "Disk 2001 [shared] web01/disk1.vmdk (thin): stays on its datastore, same format as source, policy gold"
        in lines
    )


async def test_wizard_per_disk_home_can_stay_where_it_is(scene: WizardScene) -> None:
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "2")
        await wizard.answer("Place the files", "2")
        await wizard.answer("VM storage policy of the home", "")
        await wizard.answer("Datastore of the home", "stay")
        await wizard.answer("Virtual disk format of disk 2000", "thick lazy zeroed")
        await wizard.answer("VM storage policy of disk 2000", "")
        await wizard.answer("Datastore of disk 2000", "stay")
        await wizard.answer("Compatibility", "")
        await finished(wizard)
    lazy = vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED
    disks = [Locator(key=2000, format=lazy)]
    assert scene.arrived == [await scene.request("cold01", host="esx01", disks=disks)]


async def test_wizard_datastores_of_a_cluster_say_on_how_many_hosts_they_are(scene: WizardScene) -> None:
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "3")
        await wizard.answer("Compute resource", "Cluster")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Place the files", "")
        await wizard.answer("Virtual disk format", "")
        await wizard.answer("VM storage policy", "")
        shown = await wizard.answer("Datastore of the virtual machine", "local")
        await wizard.answer("Compatibility", "")
        await finished(wizard)
    assert "2 local 5.0 GiB 10.0 GiB 2 of 2" in rows(shown)
    assert scene.arrived == [await scene.request("cold01", cluster="Cluster", datastore="local")]

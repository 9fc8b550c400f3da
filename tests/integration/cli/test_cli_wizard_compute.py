"""The Migrate wizard on a terminal against a real vpxd with FAKE hosts: VM, type, compute resource, priority."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from tests.framework.vpxd_rig import until
from tests.framework.wizard_scene import (
    DEFAULTS,
    WizardScene,
    finished,
    rows,
    through_networks,
    through_priority,
    to_review,
    wizard_scene,
)

_TO_DMZ = [service_pb2.NicMapping(from_network="OLD", network="DMZ")]


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WizardScene]:
    async with wizard_scene(tmp_path / "vpxd", monkeypatch) as running:
        yield running


def _with(**values: int) -> spec_pb2.MigrationOptions:
    options = spec_pb2.MigrationOptions()
    options.CopyFrom(DEFAULTS)
    for name, value in values.items():
        setattr(options, name, value)
    return options


async def test_wizard_vm_not_named_is_chosen_from_a_table(scene: WizardScene) -> None:
    async with scene.wizard() as wizard:
        shown = await wizard.answer("Virtual machine", "1")
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await finished(wizard)
    vm = await scene.id_of("cold01")
    assert f"1 cold01 {vm} esx01 poweredOff 1.0 GiB 1 0" in rows(shown)
    assert scene.arrived == [await scene.request("cold01", host="esx02")]
    assert (await scene.rig.vm("cold01")).host_name == "esx02"


async def test_wizard_type_compute_only_sends_the_host_and_no_storage(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await to_review(wizard)
        shown = await finished(wizard)
    assert "Change compute resource only" in shown
    assert "Compatibility checks succeeded." in shown
    assert scene.arrived == [await scene.request("web01", host="esx02", networks=_TO_DMZ)]
    assert "Select storage" not in wizard.screen
    assert "web01 has moved from esx01 to esx02" in wizard.screen


async def test_wizard_type_storage_only_stays_on_its_host(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "2")
        await wizard.answer("Place the files", "1")
        await wizard.answer("Virtual disk format", "1")
        await wizard.answer("VM storage policy", "1")
        await wizard.answer("Datastore of", "fast")
        await wizard.answer("Compatibility", "")
        await through_priority(wizard)
        await finished(wizard)
    assert scene.arrived == [await scene.request("web01", host="esx01", datastore="fast")]
    for title in ("Select a compute resource", "Select networks"):
        assert title not in wizard.screen
    assert "web01's storage has moved" in wizard.screen


async def test_wizard_type_both_sends_host_and_storage(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "3")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Place the files", "1")
        await wizard.answer("Virtual disk format", "1")
        await wizard.answer("VM storage policy", "1")
        await wizard.answer("Datastore of", "local")
        await wizard.answer("Compatibility", "")
        await through_networks(wizard, LAN="", OLD="DMZ")
        await through_priority(wizard)
        await finished(wizard)
    expected = await scene.request("web01", host="esx02", datastore="local", networks=_TO_DMZ)
    assert scene.arrived == [expected]
    assert (await scene.rig.vm("web01")).home == "[local] web01/web01.vmx"


async def test_wizard_compute_hosts_and_clusters_are_shown_with_their_load(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        shown = await wizard.answer("Compute resource", "q")
        assert await wizard.end() == 130
    assert "1 esx01 connected 0 % 1 of 16 1.0 GiB of 8.0 GiB 2 the VM is here" in rows(shown)
    assert "2 esx02 connected 0 % 0 of 16 0 B of 8.0 GiB 0" in rows(shown)
    assert "3 Cluster 2 hosts 0 % 1 of 32 1.0 GiB of 16.0 GiB 2 let the cluster choose" in rows(shown)


async def test_wizard_compute_cluster_shows_scores_and_is_sent(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "Cluster")
        first = await wizard.answer("Compatibility", "")
        await through_networks(wizard, LAN="LAN", OLD="DMZ")
        await through_priority(wizard)
        shown = await finished(wizard)
    assert "open: networks or storage aren't chosen yet" in first
    line = next(line for line in shown.splitlines() if line.startswith("esx02"))
    assert 0 < float(line.split()[1]) <= 1
    assert len(line.split()) > 2, "no reason is given"
    assert scene.arrived == [await scene.request("web01", cluster="Cluster", networks=_TO_DMZ)]


async def test_wizard_compute_error_blocks_next_until_another_is_chosen(scene: WizardScene) -> None:
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx01")
        shown = await wizard.answer("c: choose again", "")
        await wizard.answer("An error stands against it", "c")
        await wizard.answer("Compute resource", "2")
        await wizard.answer("Compatibility checks succeeded.", "")
        await finished(wizard)
    assert "Enter: next" not in shown
    assert scene.arrived == [await scene.request("cold01", host="esx02")]


async def test_wizard_powered_off_vm_without_nics_skips_networks_and_priority(scene: WizardScene) -> None:
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await finished(wizard)
    for title in ("Select storage", "Select networks", "Select vMotion priority"):
        assert title not in wizard.screen
    assert "3  Ready to complete" in wizard.screen


@pytest.mark.parametrize(
    ("answer", "priority"),
    [
        ("high", spec_pb2.PRIORITY_HIGH),
        ("default", spec_pb2.PRIORITY_DEFAULT),
        ("low", spec_pb2.PRIORITY_LOW),
    ],
)
async def test_wizard_priority_is_sent(
    scene: WizardScene, answer: str, priority: spec_pb2.Priority.ValueType
) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await through_networks(wizard, LAN="LAN", OLD="LAN")
        await through_priority(wizard, answer)
        await finished(wizard)
    assert [request.options for request in scene.arrived] == [_with(priority=priority)]


async def test_wizard_priority_that_cant_be_reserved_blocks_next_there(scene: WizardScene) -> None:
    scene.rig.fakes.hosts["esx02"].info.vcpu_capacity = 1
    scene.rig.fakes.hosts["esx02"].changed()

    async def capacity() -> int:
        return (await scene.rig.host("esx02")).info.vcpu_capacity

    await until(capacity, lambda vcpus: vcpus == 1)
    async with scene.wizard("web01", "--priority", "high") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility checks succeeded.", "")
        await through_networks(wizard, LAN="LAN", OLD="DMZ")
        await wizard.answer("vMotion priority\n", "")
        shown = await wizard.answer("c: choose again", "c")
        await through_priority(wizard, "2")
        await finished(wizard)
    assert "resource pool" in shown
    assert "remedy: choose another priority" in shown
    assert [request.options.priority for request in scene.arrived] == [spec_pb2.PRIORITY_DEFAULT]


@pytest.mark.parametrize(
    ("verification", "encryption", "expected"),
    [
        ("off", "required", DEFAULTS),
        ("after resume", "disabled", _with(verify=2, encryption=2)),
        ("before resume", "required", _with(verify=3)),
    ],
)
async def test_wizard_advanced_verification_and_encryption_are_sent(
    scene: WizardScene, verification: str, encryption: str, expected: spec_pb2.MigrationOptions
) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await through_networks(wizard, LAN="LAN", OLD="DMZ")
        await wizard.answer("vMotion priority\n", "advanced")
        await wizard.answer("Verification of the memory", verification)
        await wizard.answer("Encryption of the vMotion streams", encryption)
        await through_priority(wizard, "2")
        shown = await finished(wizard)
    assert [request.options for request in scene.arrived] == [expected]
    assert verification in shown

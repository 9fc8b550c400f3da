"""The Migrate wizard's network step on a terminal against a real vpxd with FAKE hosts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vpxd.v1 import service_pb2
from tests.framework.vpxd_rig import until
from tests.framework.wizard_scene import (
    WizardScene,
    finished,
    rows,
    through_networks,
    through_priority,
    wizard_scene,
)

Mapping = service_pb2.NicMapping


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WizardScene]:
    async with wizard_scene(tmp_path / "vpxd", monkeypatch) as running:
        yield running


async def test_wizard_networks_by_port_group_send_what_changes(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Map the networks", "by port group")
        shown = await wizard.answer("Destination network of LAN (NIC 4000)", "DMZ")
        await wizard.answer("Destination network of OLD (NIC 4001)", "LAN")
        await wizard.answer("Compatibility", "")
        await through_priority(wizard)
        await finished(wizard)
    mappings = [Mapping(from_network="LAN", network="DMZ"), Mapping(from_network="OLD", network="LAN")]
    assert "1 DMZ 9" in rows(shown)
    assert "*2 LAN 7 as it is called now" in rows(shown)
    assert scene.arrived == [await scene.request("web01", host="esx02", networks=mappings)]
    assert [nic.network for nic in (await scene.rig.vm("web01")).config.nics] == ["DMZ", "LAN"]


async def test_wizard_networks_per_nic_send_each_nics_own(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Map the networks", "advanced")
        await wizard.answer("Destination network of NIC 4000", "LAN")
        await wizard.answer("Destination network of NIC 4001", "DMZ")
        await wizard.answer("Compatibility", "")
        await through_priority(wizard)
        shown = await finished(wizard)
    assert "NIC 4001 OLD → DMZ" in rows(shown)
    expected = await scene.request("web01", host="esx02", networks=[Mapping(nic=4001, network="DMZ")])
    assert scene.arrived == [expected]


async def test_wizard_networks_missing_port_group_of_a_connected_nic_blocks_next(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility checks succeeded.", "")
        await wizard.answer("Map the networks", "1")
        await wizard.answer("Destination network of LAN", "")
        await wizard.answer("Destination network of OLD", "OLD")
        shown = await wizard.answer("c: choose again", "c")
        await through_networks(wizard, LAN="", OLD="DMZ")
        await through_priority(wizard)
        await finished(wizard)
    assert "error: esx02 has no port group OLD" in shown
    assert "remedy: map the NIC to a port group of esx02" in shown
    expected = [Mapping(from_network="OLD", network="DMZ")]
    assert [list(request.spec.networks) for request in scene.arrived] == [expected]


async def test_wizard_warning_of_an_unplugged_nic_doesnt_block_next(scene: WizardScene) -> None:
    host = scene.rig.fakes.hosts["esx01"]
    state = next(vm for vm in host.vms.values() if vm.name == "web01")
    state.config.nics[1].connected = False
    host.changed()

    async def plugged() -> bool:
        return (await scene.rig.vm("web01")).config.nics[1].connected

    await until(plugged, lambda connected: not connected)
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Map the networks", "1")
        await wizard.answer("Destination network of LAN", "")
        await wizard.answer("Destination network of OLD", "OLD")
        shown = await wizard.answer("Enter: next", "")
        await through_priority(wizard)
        await finished(wizard)
    assert "warning: esx02 has no port group OLD" in shown
    assert scene.arrived == [await scene.request("web01", host="esx02")]


async def test_wizard_networks_of_a_cluster_are_those_of_its_hosts(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "1")
        await wizard.answer("Compute resource", "Cluster")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Map the networks", "1")
        shown = await wizard.answer("Destination network of LAN", "q")
        assert await wizard.end() == 130
    assert "1 DMZ 9 1 of 2" in rows(shown)
    assert "*2 LAN 7 2 of 2 as it is called now" in rows(shown)


async def test_wizard_own_host_with_other_storage_asks_for_no_networks(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type", "3")
        await wizard.answer("Compute resource", "esx01")
        await wizard.answer("Compatibility checks succeeded.", "")
        await wizard.answer("Place the files", "1")
        await wizard.answer("Virtual disk format", "")
        await wizard.answer("VM storage policy", "")
        await wizard.answer("Datastore of", "shared")
        await wizard.answer("c: choose again", "c")
        for question in ("Place the files", "Virtual disk format", "VM storage policy"):
            await wizard.answer(question, "")
        await wizard.answer("Datastore of", "fast")
        await wizard.answer("Compatibility", "")
        await through_priority(wizard)
        await finished(wizard)
    assert "error: web01 is on esx01 already" in wizard.screen
    assert "Select networks" not in wizard.screen
    assert scene.arrived == [await scene.request("web01", host="esx01", datastore="fast")]

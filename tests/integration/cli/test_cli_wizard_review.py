"""The Migrate wizard's last step, its ways out, and when it starts, against a real vpxd with FAKE hosts."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import TaskInProgress
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
from vpxd.services.vm_service import VmService

_TO_DMZ = [service_pb2.NicMapping(from_network="OLD", network="DMZ")]
_SPEC = {
    "version": 1,
    "host": "esx02",
    "networks": [{"from": "OLD", "to": "DMZ"}],
    "options": {"priority": "default", "verify": "off", "encryption": "required"},
}


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WizardScene]:
    async with wizard_scene(tmp_path / "vpxd", monkeypatch) as running:
        yield running


async def _piped(scene: WizardScene, *words: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """`vpx vm migrate WORDS` without a terminal."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "vpxd.cli", "vm", "migrate", *words],
        env=scene.environment,
        cwd="/",
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_wizard_review_shows_everything_and_finish_starts_it(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await to_review(wizard)
        shown = rows(await finished(wizard))
    vm = await scene.id_of("web01")
    for row in (
        f"Virtual machine web01 ({vm}), poweredOn on esx01",
        "Migration type Change compute resource only",
        "Host esx02",
        "Network LAN → LAN",
        "Network OLD → DMZ",
        "Priority default",
        "Verification off",
        "Encryption required",
        "│ Compatibility checks succeeded. │",
    ):
        assert row in shown
    assert scene.arrived == [await scene.request("web01", host="esx02", networks=_TO_DMZ)]


async def test_wizard_back_at_every_step_keeps_the_choices(scene: WizardScene) -> None:
    """From the last step back to the first, then forward with Enter alone: the same request."""
    async with scene.wizard() as wizard:
        await wizard.answer("Virtual machine", "web01")
        await wizard.answer("Migration type", "3")
        await wizard.answer("Compute resource", "esx02")
        await wizard.answer("Compatibility", "")
        await wizard.answer("Place the files", "1")
        await wizard.answer("Virtual disk format", "thin")
        await wizard.answer("VM storage policy", "gold")
        await wizard.answer("Datastore of", "shared")
        await wizard.answer("Compatibility", "")
        await through_networks(wizard, LAN="DMZ", OLD="LAN")
        await through_priority(wizard, "low")
        await wizard.answer("Finish?", "Back")
        for question in ("vMotion priority\n", "Map the networks", "Place the files", "Compute resource\n"):
            await wizard.answer(question, "b")
        await wizard.answer("Migration type\n", "b")
        await wizard.answer("Virtual machine\n", "b")
        await wizard.answer("This is the first step.", "")
        await wizard.answer("Migration type\n", "")
        await wizard.answer("Compute resource\n", "")
        await wizard.answer("Compatibility", "")
        for question in ("Place the files", "Virtual disk format", "VM storage policy", "Datastore of"):
            await wizard.answer(question, "")
        await wizard.answer("Compatibility", "")
        await through_networks(wizard, LAN="", OLD="")
        await through_priority(wizard)
        await finished(wizard)
    mappings = [
        service_pb2.NicMapping(from_network="LAN", network="DMZ"),
        service_pb2.NicMapping(from_network="OLD", network="LAN"),
    ]
    options = spec_pb2.MigrationOptions()
    options.CopyFrom(DEFAULTS)
    options.priority = spec_pb2.PRIORITY_LOW
    expected = await scene.request(
        "web01", options, host="esx02", datastore="shared", format=1, policy="gold", networks=mappings
    )
    assert scene.arrived == [expected]


@pytest.mark.parametrize("keys", ["\x03", "q\n", "\x04", "3\n"], ids=["ctrl-c", "q", "ctrl-d", "cancel"])
async def test_wizard_cancel_leaves_with_130_and_nothing_started(scene: WizardScene, keys: str) -> None:
    async with scene.wizard("web01") as wizard:
        await to_review(wizard)
        await wizard.answer("Finish?")
        wizard.type(keys)
        assert await wizard.end() == 130
    assert "Canceled: nothing was started." in wizard.screen
    assert "Traceback" not in wizard.screen
    assert not scene.arrived


async def test_wizard_ctrl_c_while_vpxd_is_asked_ends_it_too(scene: WizardScene) -> None:
    host = scene.rig.fakes.hosts["esx01"]
    host.hold["InspectDisk"] = asyncio.Event()
    async with scene.wizard("cold01") as wizard:
        await wizard.answer("Migration type", "2")
        for question in ("Place the files", "Virtual disk format", "VM storage policy"):
            await wizard.answer(question, "")
        await wizard.answer("Datastore of", "fast")
        async with asyncio.timeout(20):
            while "InspectDisk" not in host.calls:
                await asyncio.sleep(0.01)
        wizard.type("\x03")
        assert await wizard.end() == 130
        host.hold["InspectDisk"].set()
    assert "Canceled: nothing was started." in wizard.screen
    assert "Compatibility" not in wizard.screen
    assert "Traceback" not in wizard.screen
    assert not scene.arrived


async def test_wizard_stays_when_vpxd_goes_away(scene: WizardScene) -> None:
    async with scene.wizard("web01") as wizard:
        await wizard.answer("Migration type")
        await scene.rig.stop()
        wizard.type("1\n")
        await wizard.see("error: No connection to vpxd")
        await wizard.answer("c: choose again", "b")
        await wizard.answer("Migration type", "q")
        assert await wizard.end() == 130
    assert not scene.arrived


async def test_wizard_print_spec_shows_what_spec_takes_back(scene: WizardScene, tmp_path: Path) -> None:
    async with scene.wizard("web01") as wizard:
        await to_review(wizard)
        await wizard.answer("Finish?", "Print spec")
        await wizard.answer("New file for it", "")
        shown = await wizard.see("\n}\n")
        await wizard.answer("Finish?", "3")
        assert await wizard.end() == 130
    printed = shown[shown.index("{") :]
    assert json.loads(printed) == _SPEC
    told = await _piped(scene, "web01", "--spec", "-", text=printed)
    assert told.returncode == 0, told.stderr
    assert scene.arrived == [await scene.request("web01", host="esx02", networks=_TO_DMZ)]


async def test_wizard_print_spec_to_a_file_never_overwrites_one(scene: WizardScene, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("mine")
    async with scene.wizard("web01") as wizard:
        await to_review(wizard)
        await wizard.answer("Finish?", "4")
        await wizard.answer("New file for it", str(tmp_path / "there.json"))
        await wizard.see("can't be written")
        await wizard.answer("Finish?", "4")
        await wizard.answer("New file for it", str(tmp_path / "new.json"))
        await wizard.answer("Finish?", "q")
        assert await wizard.end() == 130
    assert (tmp_path / "there.json").read_text() == "mine"
    assert json.loads((tmp_path / "new.json").read_text()) == _SPEC
    told = await _piped(scene, "web01", "--spec", str(tmp_path / "new.json"))
    assert told.returncode == 0, told.stderr
    assert len(scene.arrived) == 1


async def test_wizard_start_that_is_refused_keeps_the_choices(
    scene: WizardScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, refusals = VmService.RelocateVm, [TaskInProgress("web01 is busy.", "vm-1", "task-7", "migrate")]

    async def once_refused(self: VmService, request: object, context: object) -> object:
        answer = await inner(self, request, context) if not refusals else None  # type: ignore[arg-type]
        if answer is None:
            raise refusals.pop()
        return answer

    monkeypatch.setattr(VmService, "RelocateVm", once_refused)
    await scene.rig.restart()  # serves the method that refuses once
    async with scene.wizard("web01") as wizard:
        await to_review(wizard)
        await wizard.answer("Finish?", "1")
        await wizard.see("web01 is busy. (TaskInProgress)")
        await finished(wizard)
    assert scene.arrived == [await scene.request("web01", host="esx02", networks=_TO_DMZ)]


async def test_wizard_begins_with_the_options_that_flags_have_set(scene: WizardScene) -> None:
    words = ("--priority", "low", "--verify", "--bandwidth", "125MB/s", "--streams", "4")
    async with scene.wizard("web01", *words, "--no-wait") as wizard:
        await to_review(wizard)
        shown = await finished(wizard)
    assert "Bandwidth at most 119 MiB/s" in rows(shown)
    expected = spec_pb2.MigrationOptions(
        verify=spec_pb2.VERIFY_MODE_AFTER_RESUME,
        encryption=spec_pb2.ENCRYPTION_MODE_REQUIRED,
        priority=spec_pb2.PRIORITY_LOW,
        streams=4,
        bandwidth_bytes_per_s=125_000_000,
    )
    assert [request.options for request in scene.arrived] == [expected]
    assert wizard.screen.rstrip().splitlines()[-1].startswith("task-")


@pytest.mark.parametrize(
    "words",
    [
        ("cold01", "--yes"),
        ("cold01", "--watch"),
        ("cold01", "-o", "json"),
        ("cold01", "--host", "esx02"),
        ("cold01", "--check"),
        ("cold01", "--print-spec"),
    ],
)
async def test_wizard_doesnt_start_on_a_terminal_where_flags_say_enough(
    scene: WizardScene, words: tuple[str, ...]
) -> None:
    async with scene.wizard(*words) as command:
        assert await command.end() == 0
    assert "Select a migration type" not in command.screen
    moved = words[-1] not in ("--check", "--print-spec")
    assert (await scene.rig.vm("cold01")).host_name == ("esx02" if moved else "esx01")


async def test_without_a_terminal_placement_chooses_and_a_vm_must_be_named(scene: WizardScene) -> None:
    moved = await _piped(scene, "cold01")
    unnamed = await _piped(scene)
    assert (moved.returncode, moved.stdout) == (0, "cold01 has moved from esx01 to esx02.\n"), moved.stderr
    assert unnamed.returncode == 2
    assert "Which VM?" in unnamed.stderr
    assert not scene.arrived

"""Small parts: settings, host identity, the change counter, CPU percentages."""

import asyncio
import json
from pathlib import Path

import pytest

from hostd.config import Config
from hostd.host.changes import Changes
from hostd.host.identity import load_or_make_host_uuid
from hostd.host.telemetry import cpu_percent
from hostd.owned_tasks import OwnedTasks
from runtime.daemon.settings import SettingsError
from runtime.faults import CannotAccessFile


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "HOST_NAME": "esx01",
        "HOST_STATE_DIR": str(tmp_path),
        "HOST_RUN_DIR": "/tmp/r",
        "HOST_DATASTORES": f"shared={tmp_path}",
        "HOST_QEMU": "/bin/true",
        "PATH": "/usr/bin:/bin",
        **more,
    }


def test_config_defaults_and_vmx_environment(tmp_path: Path) -> None:
    config = Config.from_environment(environment(tmp_path, HOST_VMOTION_ADDRESS="127.0.2.1", LANG="C"))
    assert config.management_address == "127.0.1.1:8443"
    assert config.memory_bytes > 0
    settings = config.vmx_settings("uuid", "tcg")
    assert settings.command[1:] == ("-m", "vmx")
    assert settings.environment["VMX_HOST_UUID"] == "uuid"
    assert settings.environment["LANG"] == "C"
    assert not [name for name in settings.environment if name.startswith("HOST_")]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOST_NAME", ""),
        ("HOST_RUN_DIR", "relative"),
        ("HOST_RUN_DIR", "/" + "x" * 90),
        ("HOST_DATASTORES", "shared"),
        ("HOST_MEMORY_BYTES", "-1"),
        ("HOST_ACCELERATOR", "hvf"),
        ("HOST_QEMU", "/no/such/program"),
        ("HOST_MANAGEMENT_PORT", "70000"),
        ("HOST_VMOTION_ADDRESS", "esx01"),
    ],
)
def test_config_bad_setting_is_named(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Config.from_environment(environment(tmp_path, **{variable: value}))
    assert caught.value.variable == variable


def test_host_uuid_is_made_once_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hostd" / "host.json"
    uuid = load_or_make_host_uuid(path)
    assert load_or_make_host_uuid(path) == uuid
    for damage in ("{}", "x", json.dumps({"uuid": "nope"})):
        path.write_text(damage)
        with pytest.raises(CannotAccessFile):
            load_or_make_host_uuid(path)
        assert path.read_text() == damage


async def test_changes_wait_past_sees_a_ring_before_or_after() -> None:
    changes = Changes()
    assert not await changes.wait_past(0, timeout_s=0.01)
    waiting = [asyncio.create_task(changes.wait_past(0, timeout_s=10)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.ring()
    changes.ring()
    assert await asyncio.gather(*waiting) == [True] * 3
    assert await changes.wait_past(1, timeout_s=10)
    assert changes.version == 2


@pytest.mark.parametrize(
    ("before", "after", "wall", "expected"),
    [(1.0, 1.5, 1.0, 50.0), (0.0, 4.0, 2.0, 200.0), (5.0, 1.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)],
)
def test_cpu_percent(before: float, after: float, wall: float, expected: float) -> None:
    assert cpu_percent(before, after, wall) == expected


async def test_owned_tasks_close_cancels_and_waits() -> None:
    tasks = OwnedTasks()
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def fails() -> None:
        raise RuntimeError("seen in the log, not here")

    tasks.start(forever(), "forever")
    await tasks.start(fails(), "fails")
    await asyncio.sleep(0)
    await tasks.close()
    assert ended == ["forever"]

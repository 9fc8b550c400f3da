"""Options of a migration, and changes of a configuration, from the command line."""

import pytest

from proto.vim.v1 import vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from vpxd.cli.errors import UsageError
from vpxd.cli.migrate_flags import MigrateVm, Priority, options_of
from vpxd.cli.vm_commands import ReconfigureVm, changed


def test_options_of_defaults_are_encrypted_and_vpxds_own() -> None:
    options = options_of(MigrateVm("web01"))
    assert options.encryption == spec_pb2.ENCRYPTION_MODE_REQUIRED
    assert options.verify == spec_pb2.VERIFY_MODE_OFF
    assert (options.streams, options.switchover_goal_ms, options.bandwidth_bytes_per_s) == (0, 0, 0)


def test_options_of_everything_named_is_passed_on() -> None:
    arguments = MigrateVm(
        "web01",
        verify_before_resume=True,
        plaintext=True,
        streams=4,
        switchover_goal_ms=20,
        max_iterations=7,
        bandwidth="125MB/s",
        tracer="hash_scan",
        priority=Priority.HIGH,
    )
    assert options_of(arguments) == spec_pb2.MigrationOptions(
        verify=spec_pb2.VERIFY_MODE_BEFORE_RESUME,
        encryption=spec_pb2.ENCRYPTION_MODE_DISABLED,
        priority=spec_pb2.PRIORITY_HIGH,
        switchover_goal_ms=20,
        max_iterations=7,
        streams=4,
        bandwidth_bytes_per_s=125_000_000,
        tracer="hash_scan",
    )


def test_options_of_contradictions_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="either"):
        options_of(MigrateVm("web01", verify=True, verify_before_resume=True))
    with pytest.raises(UsageError, match="--bandwidth"):
        options_of(MigrateVm("web01", bandwidth="1Gb/s"))


def test_changed_keeps_what_isnt_named_and_the_version_it_was_read_at() -> None:
    config = vm_config_pb2.VmConfig(name="web01", vcpus=1, ram_bytes=1 << 29, change_version=4)
    config.boot.kernel = "[shared] k"
    new = changed(config, ReconfigureVm("web01", ram="1GiB", cmdline="quiet"))
    assert (new.ram_bytes, new.vcpus, new.name, new.change_version) == (1 << 30, 1, "web01", 4)
    assert (new.boot.kernel, new.boot.kernel_command_line) == ("[shared] k", "quiet")


def test_changed_nothing_named_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Nothing to change"):
        changed(vm_config_pb2.VmConfig(name="web01"), ReconfigureVm("web01"))

"""CheckRelocate agrees with what a migration then does, over random clusters and specifications.

`refusal` is a model of what the hosts refuse, written without vpxd's checks:

    no error finding    the model accepts what was resolved, and so does `plan`, the entry of every migration
    an error finding    `plan` refuses, with one of the faults that were found
"""

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings

from runtime import faults
from tests.framework.relocation_model import refusal
from tests.framework.relocation_worlds import World, worlds
from vpxd.compatibility.finding import Finding
from vpxd.compatibility.relocate import Answer, Question, check
from vpxd.migration.options import MigrationOptions, Priority
from vpxd.migration.order import MigrationOrder
from vpxd.migration.plan import plan


def _planned(world: World, host_id: str) -> faults.VimFault | None:
    """The fault with which the entry of every migration refuses."""
    priority = Priority.HIGH if world.high_priority else Priority.DEFAULT
    order = MigrationOrder(
        world.vm.id, replace(world.spec, host=host_id), MigrationOptions(priority=priority)
    )
    try:
        made = plan(world.inventory, world.facts, order, "task-1")
    except faults.VimFault as fault:
        return fault
    assert made.destination.id == host_id
    return None


def _answer(world: World, host_id: str) -> Answer:
    question = Question(world.vm, world.spec, world.high_priority)
    return check(world.inventory, world.facts, question, world.inventory.hosts[host_id])


def _types(found: tuple[Finding, ...]) -> set[type[faults.VimFault]]:
    return {type(finding.fault) for finding in found if finding.error}


def test_no_error_is_never_refused_and_an_error_is_never_accepted() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(worlds())
    def agrees(world: World) -> None:
        for host_id in world.inventory.hosts:
            answer = _answer(world, host_id)
            planned = _planned(world, host_id)
            if answer.errors:
                assert planned is not None
                assert type(planned) in _types(answer.findings)
                seen.update(fault.__name__ for fault in _types(answer.findings))
            else:
                refused = refusal(world, host_id, answer.relocation, answer.vm.live)
                assert refused is None, f"{refused} was not found"
                assert planned is None
                seen["accepted", answer.relocation.kind.value] += 1  # type: ignore[index]

    agrees()
    # The property says something only where both sides and all kinds of obstacles come up.
    wanted = {
        "HostNotConnected", "InvalidArgument", "InaccessibleDatastore", "NoDiskSpace", "CannotAccessNetwork",
        "VirtualHardwareVersionNotSupported", "FeatureRequirementsNotMet", "InsufficientMemoryResources",
        "InsufficientCpuResources", "VMotionNotConfigured", "RuleViolation", "NotSupported",
        "PolicyNotSatisfied",
    }  # fmt: skip
    assert wanted <= seen.keys()
    assert {("accepted", "compute"), ("accepted", "storage"), ("accepted", "both")} <= seen.keys()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_every_finding_has_a_sentence_a_remedy_and_a_group(world: World) -> None:
    for host_id in world.inventory.hosts:
        found = _answer(world, host_id).findings
        assert all(finding.fault.message and finding.remedy and finding.group for finding in found)
        assert [finding.error for finding in found] == sorted((f.error for f in found), reverse=True)

"""Affinity rules among themselves: contradictions, violations, and dropping what is gone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpxd.inventory.records import AffinityRule, RuleKind
from vpxd.placement.rules import contradicting, violated, without

HOSTS = frozenset({"host-1", "host-2", "host-3"})
_KINDS = {
    "together": RuleKind.VM_AFFINITY,
    "apart": RuleKind.VM_ANTI_AFFINITY,
    "on": RuleKind.VM_HOST_AFFINITY,
    "off": RuleKind.VM_HOST_ANTI_AFFINITY,
}


def _rule(text: str, name: str = "") -> AffinityRule:
    """ "together a b", "on a b @ 1 2" (hosts by number)."""
    kind, _, rest = text.partition(" ")
    vms, _, hosts = rest.partition(" @ ")
    return AffinityRule(
        "domain-c1",
        name or text,
        _KINDS[kind],
        tuple(vms.split()),
        tuple(f"host-{number}" for number in hosts.split()),
    )


@pytest.mark.parametrize(
    ("rule", "others", "named"),
    [
        ("apart a b", ["together a b"], "together a b"),
        ("together a b", ["apart b a"], "apart b a"),
        ("apart a c", ["together a b", "together b c"], "together a b"),
        ("together a b", ["apart a c"], ""),
        ("on a @ 1", ["off a @ 1"], "off a @ 1"),
        ("on a @ 1", ["off a @ 2", "on a @ 1 2"], ""),
        ("together a b", ["off c @ 1", "on a @ 1", "on b @ 2"], "on a @ 1"),
        ("off a @ 1 2 3", [], "off a @ 1 2 3"),
        ("off a @ 1 2", ["off a @ 3"], "off a @ 3"),
    ],
)
def test_rule_that_can_not_hold_with_others_names_one_of_them(
    rule: str, others: list[str], named: str
) -> None:
    assert contradicting(_rule(rule), [_rule(other) for other in others], HOSTS) == named


def test_disabled_rules_and_the_rule_s_own_predecessor_do_not_count() -> None:
    old = _rule("together a b", "x")
    assert contradicting(_rule("apart a b", "x"), [old], HOSTS) == ""
    assert contradicting(_rule("apart a b", "y"), [replace(old, enabled=False)], HOSTS) == ""
    assert contradicting(replace(_rule("apart a b", "y"), enabled=False), [old], HOSTS) == ""


@pytest.mark.parametrize(
    ("rule", "running", "broken"),
    [
        ("together a b", {"a": "host-1", "b": "host-2"}, True),
        ("together a b", {"a": "host-1"}, False),
        ("apart a b", {"a": "host-1", "b": "host-1"}, True),
        ("apart a b", {"a": "host-1", "b": "host-2", "c": "host-1"}, False),
        ("on a b @ 1", {"a": "host-1", "b": "host-2"}, True),
        ("on a b @ 1", {"a": "host-1"}, False),
        ("off a @ 1", {"a": "host-1"}, True),
        ("off a @ 1", {"a": "host-2"}, False),
    ],
)
def test_rule_is_violated_by_vms_that_run(rule: str, running: dict[str, str], broken: bool) -> None:
    assert violated(_rule(rule), running) is broken
    assert not violated(replace(_rule(rule), enabled=False), running)
    assert not violated(_rule(rule), {})


def test_what_is_gone_drops_out() -> None:
    rules = [_rule("together a b"), _rule("on b @ 1 2"), _rule("apart c d")]
    assert without(rules, {"b", "host-2"}) == [
        replace(rules[0], vms=("a",)),
        replace(rules[1], vms=(), hosts=("host-1",)),
    ]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), min_size=1, unique_by=lambda p: p[0]))
def test_rules_that_hold_somewhere_never_contradict(places: list[tuple[str, int]]) -> None:
    """Rules read off a real placement can hold together: in that placement."""
    running = {vm: f"host-{number}" for vm, number in places}
    rules = [_rule(f"on {vm} @ {number}") for vm, number in places]
    for index, (vm, number) in enumerate(places):
        rules += [_rule(f"off {vm} @ {other}") for other in (1, 2, 3) if other != number]
        for other, its in places[index + 1 :]:
            rules.append(_rule(f"{'together' if its == number else 'apart'} {vm} {other}"))
    assert not any(violated(rule, running) for rule in rules)
    for index, rule in enumerate(rules):
        assert contradicting(rule, rules[:index], HOSTS) == ""

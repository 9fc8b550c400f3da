"""Admission never hands out more than there is, and gets back what it gave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.vmotion.admission import Admission, Reservation
from runtime.faults import InsufficientCpuResources, InsufficientMemoryResources, ResourceInUse


def test_reserve_more_than_is_left_tells_what_is_left() -> None:
    admission = Admission(1000, 4)
    admission.reserve(Reservation("a", 600, 1))
    with pytest.raises(InsufficientMemoryResources) as caught:
        admission.reserve(Reservation("b", 401, 1))
    assert (caught.value.requested_bytes, caught.value.unreserved_bytes) == (401, 400)
    with pytest.raises(InsufficientCpuResources) as caught_cpu:
        admission.reserve(Reservation("b", 400, 4))
    assert (caught_cpu.value.requested_vcpus, caught_cpu.value.unreserved_vcpus) == (4, 3)
    admission.reserve(Reservation("b", 400, 3))
    assert (admission.memory_reserved_bytes, admission.vcpus_reserved) == (1000, 4)


def test_reserve_twice_for_one_vm_is_refused() -> None:
    admission = Admission(1000, 4)
    admission.reserve(Reservation("a", 1, 1))
    with pytest.raises(ResourceInUse):
        admission.reserve(Reservation("a", 1, 1))


def test_adopt_beyond_capacity_counts_and_leaves_nothing_for_others() -> None:
    admission = Admission(1000, 4)
    admission.adopt(Reservation("a", 2000, 8))
    assert admission.memory_reserved_bytes == 2000
    with pytest.raises(InsufficientMemoryResources) as caught:
        admission.reserve(Reservation("b", 1, 1))
    assert caught.value.unreserved_bytes == 0
    admission.release("a")
    admission.reserve(Reservation("b", 1000, 4))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef"), st.integers(1, 500), st.integers(1, 3))))
def test_any_sequence_never_exceeds_the_capacity_and_adds_up(
    steps: list[tuple[bool, str, int, int]],
) -> None:
    admission = Admission(1000, 6)
    model: dict[str, tuple[int, int]] = {}
    for is_reserve, vm, ram, vcpus in steps:
        if not is_reserve:
            admission.release(vm)
            model.pop(vm, None)
            continue
        try:
            admission.reserve(Reservation(vm, ram, vcpus))
        except (InsufficientMemoryResources, InsufficientCpuResources, ResourceInUse):
            continue
        model[vm] = (ram, vcpus)
    assert admission.memory_reserved_bytes == sum(ram for ram, _ in model.values()) <= 1000
    assert admission.vcpus_reserved == sum(vcpus for _, vcpus in model.values()) <= 6

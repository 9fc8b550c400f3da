"""The CPU that a guest is fixed to, in QEMU's words: everything is said, nothing else gets in."""

import pytest

from vmx.guest.cpu_model import FixedCpu, cpu_option
from vmx.guest.errors import GuestSpecError

CPU = FixedCpu("Haswell", ("avx2", "sse4.1"), ("hle", "x2apic"))


def test_cpu_option_says_every_feature() -> None:
    assert cpu_option("qemu64", CPU) == "Haswell,avx2=on,sse4.1=on,hle=off,x2apic=off"
    assert cpu_option("qemu64,+avx2", None) == "qemu64,+avx2"


def test_cpu_option_keeps_what_is_no_feature_of_the_same_model() -> None:
    text = cpu_option("Haswell,host-phys-bits=on,+avx2,-hle,x2apic=off,avx2=on", CPU)
    assert text == "Haswell,host-phys-bits=on,avx2=on,sse4.1=on,hle=off,x2apic=off"
    assert "host-phys-bits" not in cpu_option("qemu64,host-phys-bits=on", CPU), (
        "it was meant for another model"
    )


@pytest.mark.parametrize(
    ("model", "features", "disabled"),
    [
        ("", (), ()),
        ("Haswell,enforce", (), ()),
        ("Haswell", ("avx2,sse=off",), ()),
        ("Haswell", ("avx2=off",), ()),
        ("Haswell", (), ("",)),
        ("Haswell", ("avx2",), ("avx2",)),
    ],
)
def test_fixed_cpu_with_names_that_are_none_is_refused(
    model: str, features: tuple[str, ...], disabled: tuple[str, ...]
) -> None:
    with pytest.raises(GuestSpecError):
        FixedCpu(model, features, disabled)


def test_lacking_is_what_the_guest_needs_and_qemu_left_out() -> None:
    assert CPU.lacking([]) == []
    assert CPU.lacking(["x2apic", "rtm"]) == []
    assert CPU.lacking(["sse4.1", "avx2", "rtm"]) == ["avx2", "sse4.1"]

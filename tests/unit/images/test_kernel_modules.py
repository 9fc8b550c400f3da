"""Which kernel modules the image needs, and in which order they load."""

import pytest

from images.errors import ModuleError
from images.kernel_modules import Driver, dependencies, load_list, load_order, module_name


def module_file(*needs: str) -> bytes:
    return b"\x7fELF code\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0name=x\0more"


FILES = {
    "top": module_file("left", "right"),
    "left": module_file("base-part"),
    "right": module_file("base-part", "left"),
    "base_part": module_file(),
}


def test_module_name_of_a_file_is_the_kernels_name() -> None:
    assert module_name("virtio-rng.ko") == "virtio_rng"


def test_load_order_of_a_diamond_puts_needs_first_and_each_once() -> None:
    assert load_order("top", FILES) == ["base_part", "left", "right", "top"]


def test_load_order_of_a_circle_ends() -> None:
    assert load_order("a", {"a": module_file("b"), "b": module_file("a")}) == ["b", "a"]


def test_load_order_with_a_missing_need_names_it() -> None:
    with pytest.raises(ModuleError) as caught:
        load_order("top", {"top": module_file("gone")})

    assert caught.value.module == "gone"


@pytest.mark.parametrize("content", [b"", b"\xfd7zXZ compressed", b"x\0depends=unterminated"])
def test_dependencies_of_what_is_no_module_are_refused(content: bytes) -> None:
    with pytest.raises(ModuleError):
        dependencies("bad", content)


def test_load_list_has_one_line_a_driver_in_their_order() -> None:
    drivers = (Driver("pci", "vendor", "0x1af4", "right"), Driver("virtio", "device", "0x0002", "base_part"))

    assert load_list(FILES, drivers) == (
        "pci vendor 0x1af4 base_part left right\nvirtio device 0x0002 base_part\n"
    )

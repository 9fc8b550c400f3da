"""Pure: no I/O, no clock, no logging.

Which kernel modules go into the guest's image, and in which order they are to be loaded.

The dependencies are read from the modules themselves (their .modinfo section), because the tools that
make modules.dep are not on every machine and the package does not carry that file.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from images.errors import ModuleError

# A module's .modinfo section is a run of NUL-terminated "key=value" strings.
_DEPENDS = b"\0depends="


@dataclass(frozen=True)
class Driver:
    """A module that the guest loads where a device's file `attribute` on the bus reads `value`."""

    bus: str
    attribute: str
    value: str
    module: str


# In the order of discovery: devices on the virtio bus appear once virtio_pci is there. The virtio numbers are
# the device ids of the virtio specification, section 5. The power button gives the guest a clean power-off.
DRIVERS = (
    Driver("acpi", "hid", "LNXPWRBN", "button"),
    Driver("acpi", "hid", "LNXPWRBN", "evdev"),
    Driver("pci", "vendor", "0x1af4", "virtio_pci"),
    Driver("virtio", "device", "0x0001", "virtio_net"),
    Driver("virtio", "device", "0x0002", "virtio_blk"),
)


def module_name(file_name: str) -> str:
    """The kernel's name of a module file: `virtio-rng.ko` is virtio_rng."""
    return file_name.removesuffix(".ko").replace("-", "_")


def dependencies(module: str, content: bytes) -> list[str]:
    """The modules that a module's file says it needs directly.

    :raises ModuleError: no such list in it: it is no module, or a compressed one.
    """
    start = content.find(_DEPENDS)
    end = content.find(b"\0", start + len(_DEPENDS))
    if start < 0 or end < 0:
        raise ModuleError(module, "no list of dependencies in its file")
    names = content[start + len(_DEPENDS) : end].decode("ascii", "replace")
    return [name.replace("-", "_") for name in names.split(",") if name]


def load_order(module: str, files: Mapping[str, bytes]) -> list[str]:
    """The module and all that it needs, each after what it needs itself.

    :param files: every module of the kernel, by name. What is built into the kernel never shows as a dependency.
    :raises ModuleError: one that is needed is not there.
    """
    order: list[str] = []
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        if name not in files:
            raise ModuleError(name, "not in the kernel package")
        for needed in dependencies(name, files[name]):
            visit(needed)
        order.append(name)

    visit(module)
    return order


def load_list(files: Mapping[str, bytes], drivers: tuple[Driver, ...] = DRIVERS) -> str:
    """The text of the list that the guest's init reads: `bus attribute value module...`, one driver a line.

    :raises ModuleError: as `load_order`.
    """
    lines = (
        " ".join((driver.bus, driver.attribute, driver.value, *load_order(driver.module, files))) + "\n"
        for driver in drivers
    )
    return "".join(lines)

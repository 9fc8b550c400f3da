"""Contracts: every rpc is documented, every enum begins with UNSPECIFIED, every fault has a class and a status."""

import re

from tests.style.tree import ROOT


def test_every_rpc_says_what_it_does_and_its_faults() -> None:
    for path in (ROOT / "proto").rglob("*.proto"):
        comment: list[str] = []
        for line in path.read_text(encoding="utf-8").split("\n"):
            text = line.strip()
            if text.startswith("rpc "):
                assert "Faults" in " ".join(comment), f"{path.name}: {text}"
            comment = [*comment, text] if text.startswith("//") else []


def test_every_enum_begins_with_unspecified_zero() -> None:
    for path in (ROOT / "proto").rglob("*.proto"):
        for name, body in re.findall(r"enum (\w+) \{(.*?)\}", path.read_text(encoding="utf-8"), re.DOTALL):
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
            assert re.search(rf"{prefix}_UNSPECIFIED = 0;", body), f"{path.name}: {name}"
            values = re.findall(r"^\s*(\w+) = \d+;", body, re.MULTILINE)
            assert all(value.startswith(f"{prefix}_") for value in values), f"{path.name}: {name}"


def test_one_service_per_daemon() -> None:
    services = {
        path.parent.parent.name: re.findall(r"^service (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in (ROOT / "proto").rglob("service.proto")
    }
    assert services == {"vpxd": ["Vpxd"], "vpxa": ["Vpxa"], "hostd": ["Hostd"], "vmx": ["Vmx"]}

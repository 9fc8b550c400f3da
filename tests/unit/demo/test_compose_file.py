"""docker-compose.yml and the demonstration name the same things: the file is read as text, there is no YAML library."""

import re

from demo.cluster_layout import PROJECT
from demo.compose_network import networks_of

TEXT = (PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
HOSTS = ("esx01", "esx02", "esx03")


def section(service: str) -> str:
    """The text of one service."""
    found = re.search(rf"^  {service}:\n((?:    .*\n|\n)+)", TEXT, re.MULTILINE)
    assert found, service
    return found[1].replace("${VPX_NETWORK:-10.77}", "10.77")


def test_addresses_of_the_compose_file_are_those_of_the_demonstration() -> None:
    networks = networks_of("10.77", HOSTS)
    assert f'ipv4_address: "{networks.vpxd}"' in section("vpxd")
    for host in HOSTS:
        assert f"HOST_NAME: {host}\n" in section(host)
        assert f"HOST_MANAGEMENT_ADDRESS: {networks.management[host]}\n" in section(host)
        assert f"HOST_VMOTION_ADDRESS: {networks.vmotion[host]}\n" in section(host)


def test_vpxd_of_the_compose_file_isnt_on_the_vmotion_network() -> None:
    assert "vmotion" not in section("vpxd")


def test_compose_file_gives_no_container_more_rights_than_it_needs() -> None:
    assert "privileged:" not in TEXT
    assert "cap_add" not in TEXT
    assert "network_mode" not in TEXT
    assert "cap_drop: [ALL]" in TEXT
    assert "no-new-privileges:true" in TEXT
    assert TEXT.count("<<: *daemon") == 2  # vpxd and the hosts
    assert TEXT.count("<<: *host\n") == len(HOSTS)


def test_compose_file_publishes_on_this_machine_only() -> None:
    ports = re.findall(r"^ +- (\S+):\d+$", TEXT, re.MULTILINE)
    assert ports == ["127.0.0.1:${VPX_PORT:-7443}"]

"""The judgement whether page data kept to the vMotion network."""

import pytest

from demo.compose_network import (
    MANAGEMENT_LIMIT_BYTES,
    Connection,
    Traffic,
    attachment_problems,
    connection_problems,
    networks_of,
    traffic_between,
    traffic_problems,
)

HOSTS = ("esx01", "esx02", "esx03")
NETWORKS = networks_of("10.77", HOSTS)
STREAM: Connection = ("10.77.2.11", 40000, "10.77.2.12", 8000)
TO_VPXD: Connection = ("10.77.1.11", 8443, "10.77.1.10", 50000)
WIRE = 100_000_000


def counters(address: str, rx: int, tx: int) -> dict[str, dict[str, int]]:
    return {address: {"rx": rx, "tx": tx}}


def traffic(vmotion: dict[str, int], management: dict[str, int]) -> Traffic:
    return Traffic("esx01", "esx02", WIRE, vmotion, management)


def test_networks_of_hosts_gives_the_addresses_of_the_compose_file() -> None:
    assert NETWORKS.vpxd == "10.77.1.10"
    assert NETWORKS.management["esx02"] == "10.77.1.12"
    assert NETWORKS.vmotion["esx03"] == "10.77.2.13"


def test_traffic_between_two_looks_tells_the_growth_by_network() -> None:
    before = {"vpxd": counters("10.77.1.10", 5, 6)}
    after = {"vpxd": counters("10.77.1.10", 15, 26)}
    for name in HOSTS:
        before[name] = counters(NETWORKS.management[name], 100, 0) | counters(NETWORKS.vmotion[name], 0, 0)
        after[name] = counters(NETWORKS.management[name], 150, 50) | counters(NETWORKS.vmotion[name], 7, 1000)
    vmotion, management = traffic_between(before, after, NETWORKS)
    assert vmotion == dict.fromkeys(HOSTS, 1007)
    assert management == {"esx01": 100, "esx02": 100, "esx03": 100, "vpxd": 30}


def test_traffic_problems_of_a_stream_on_the_vmotion_network_finds_none() -> None:
    vmotion = {"esx01": WIRE + 1_000_000, "esx02": WIRE + 1_000_000, "esx03": 300}
    assert traffic_problems(traffic(vmotion, {"esx01": 40_000, "vpxd": 90_000})) == []


@pytest.mark.parametrize(
    ("vmotion", "management", "word"),
    [
        ({"esx01": WIRE // 2, "esx02": WIRE}, {}, "esx01's vMotion"),
        ({"esx01": WIRE, "esx02": 2 * WIRE}, {}, "esx02's vMotion"),
        ({"esx01": WIRE, "esx02": WIRE, "esx03": WIRE}, {}, "esx03 has no part"),
        ({"esx01": WIRE, "esx02": WIRE}, {"esx02": MANAGEMENT_LIMIT_BYTES + 1}, "esx02's management"),
        ({"esx01": WIRE, "esx02": WIRE}, {"vpxd": WIRE}, "vpxd's management"),
    ],
)
def test_traffic_problems_of_bytes_at_the_wrong_place_names_the_interface(
    vmotion: dict[str, int], management: dict[str, int], word: str
) -> None:
    (problem,) = traffic_problems(traffic(vmotion, management))
    assert word in problem


def test_attachment_problems_of_vpxd_on_the_vmotion_network_tells_it() -> None:
    seen = {"vpxd": counters("10.77.1.10", 0, 0) | counters("10.77.2.10", 0, 0)}
    assert "10.77.2.10" in attachment_problems(seen, NETWORKS)[0]
    assert attachment_problems({"vpxd": counters("10.77.1.10", 0, 0)}, NETWORKS) == []


def test_connection_problems_of_streams_and_orders_finds_none() -> None:
    local: Connection = ("127.0.0.1", 1, "127.0.0.11", 53)
    assert connection_problems({"esx01": [STREAM, TO_VPXD, local]}, "esx01", "esx02", NETWORKS) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("10.77.1.11", 40000, "10.77.1.12", 8000),  # host to host on the management network
        ("10.77.2.11", 40000, "10.77.2.13", 8000),  # to a host that has no part in it
        ("10.77.1.11", 40000, "10.77.2.12", 8000),  # from one network to the other
        ("10.77.2.11", 40000, "10.77.1.10", 7443),  # vpxd over the vMotion network
        ("10.77.1.11", 40000, "192.0.2.1", 443),
    ],
)
def test_connection_problems_of_any_other_connection_names_it(wrong: Connection) -> None:
    (problem,) = connection_problems({"esx01": [STREAM, wrong]}, "esx01", "esx02", NETWORKS)
    assert f"{wrong[0]}:{wrong[1]}" in problem


def test_connection_problems_without_a_stream_isnt_a_proof() -> None:
    (problem,) = connection_problems({"esx01": [TO_VPXD]}, "esx01", "esx02", NETWORKS)
    assert "was seen" in problem

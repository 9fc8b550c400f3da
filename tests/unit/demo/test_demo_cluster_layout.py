"""The plan of a local cluster, and the note of what it has started."""

from pathlib import Path

import pytest

from demo import cluster_state
from demo.cluster_layout import BlockReservation, ClusterLayout
from demo.cluster_state import ClusterState, StateUnreadable
from demo.processes import ProcessId


def test_layout_blocks_share_no_address() -> None:
    seen: set[str] = set()
    for block in range(26):
        layout = ClusterLayout(Path("/c"), 3, block)
        for number in (1, 2, 3):
            seen |= {
                layout.management_address(number),
                layout.vmotion_address(number),
                layout.switch_address(number),
            }
    assert len(seen) == 26 * 3 * 3
    assert ClusterLayout(Path("/c")).management_address(2) == "127.0.1.2"
    assert ClusterLayout(Path("/c")).vmotion_address(2) == "127.0.2.2"


def test_layout_makes_the_switches_of_all_hosts_peers() -> None:
    layout = ClusterLayout(Path("/c"), 2, 1)
    environments = [layout.host_environment(number) for number in (1, 2)]
    assert [one["HOST_VSWITCH_ADDRESS"] for one in environments] == ["127.0.13.1", "127.0.13.2"]
    assert {one["HOST_VSWITCH_PEERS"] for one in environments} == {"127.0.13.1,127.0.13.2"}


def test_layout_run_directory_is_short_and_the_clusters_own() -> None:
    deep = ClusterLayout(Path("/" + "/".join(["very-long-folder-name"] * 12)))
    assert len(str(deep.host_run_directory("esx03"))) <= 62
    assert deep.run_directory != ClusterLayout(Path("/other")).run_directory


def test_layout_environment_passes_no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_QEMU", "/somewhere/else")
    monkeypatch.setenv("VPXD_DATABASE_URL", "postgresql://other")
    layout = ClusterLayout(Path("/c"))
    assert "VPXD_DATABASE_URL" not in layout.vpxd().environment
    assert "HOST_QEMU" not in layout.host_environment(1)
    own = ClusterLayout(Path("/c"), host_settings=(("HOST_MEMORY_BYTES", "1"),))
    assert own.host_environment(1)["HOST_MEMORY_BYTES"] == "1"


@pytest.mark.parametrize(
    ("hosts", "block", "directory"), [(0, 0, "/c"), (3, 26, "/c"), (3, 0, "/a,b"), (3, 0, "/a=b")]
)
def test_layout_impossible_numbers_are_refused(hosts: int, block: int, directory: str) -> None:
    with pytest.raises(ValueError, match=r"hosts|block|folder"):
        ClusterLayout(Path(directory), hosts, block)


def test_block_reservation_gives_each_its_own(tmp_path: Path) -> None:
    with BlockReservation() as one, BlockReservation() as other:
        assert one.block != other.block
        assert min(one.block, other.block) >= 2
        assert one.layout(tmp_path).vpxd_port != one.layout(tmp_path).join_port
    with BlockReservation() as again:
        assert again.block >= 2


def test_state_is_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert cluster_state.load(path) is None
    state = ClusterState(3, 1, 7443, 7444, {"vpxd": ProcessId(12, 34)})
    cluster_state.save(path, state)
    assert cluster_state.load(path) == state


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "processes": {"a": {"pid": "x"}}}']
)
def test_state_unreadable_is_said_and_nothing_guessed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StateUnreadable):
        cluster_state.load(path)

"""The map of mirrored sectors against the simplest model there is, and its size under hostile requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmx.disk.sector_map import SectorMap

CHUNK = 4096
REGION = CHUNK * 512
# Small ranges around the edges of sectors' chunks and regions.
EDGES = st.sampled_from([0, CHUNK, 2 * CHUNK, REGION - CHUNK, REGION, REGION + CHUNK])
RANGES = st.tuples(
    st.builds(lambda edge, by: max(0, edge + by), EDGES, st.integers(-40, 40)),
    st.one_of(st.integers(1, 60), st.integers(CHUNK - 30, 2 * CHUNK + 30)),
)


def expanded(runs: list[tuple[int, int]]) -> list[int]:
    return [sector for first, count in runs for sector in range(first, first + count)]


@given(added=st.lists(RANGES, max_size=12), asked=st.lists(RANGES, min_size=1, max_size=6))
def test_sector_map_any_ranges_as_a_plain_set(
    added: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    sectors, model = SectorMap(), set[int]()
    for first, count in added:
        sectors.add(first, count)
        model.update(range(first, first + count))
    for first, count in asked:
        missing = list(sectors.missing(first, count))
        assert all(length > 0 for _, length in missing)
        assert expanded(missing) == [sector for sector in range(first, first + count) if sector not in model]


def test_sector_map_whole_disk_at_once_is_small() -> None:
    sectors = SectorMap()
    sectors.add(5, (62 << 40) // 512 - 5)
    assert list(sectors.missing(0, 100)) == [(0, 5)]
    assert len(sectors._regions) == 62 << 10
    assert sum(len(region.partial) for region in sectors._regions.values()) == 1


def test_sector_map_chunk_filled_bit_by_bit_takes_no_bits() -> None:
    sectors = SectorMap()
    for sector in range(CHUNK):
        sectors.add(CHUNK + sector, 1)
    assert list(sectors.missing(CHUNK, CHUNK)) == []
    assert sectors._regions[0].partial == {}


def test_sector_map_nothing_added_all_is_missing() -> None:
    assert expanded(list(SectorMap().missing(3, 2 * CHUNK))) == list(range(3, 3 + 2 * CHUNK))
    assert list(SectorMap().missing(3, 0)) == []

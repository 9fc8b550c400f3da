"""The two ends' specifications: what of memory, disks and channels can be, and which connection is for what."""

import pytest

from vmx.stream.errors import SpecInvalid
from vmx.stream.spec import ChannelPlan, ChannelRole, DiskExtent, StreamSecret, StreamSpec

SECRET = StreamSecret(1, b"k" * 32, b"t" * 32)
ENDS = ("127.0.2.1", "127.0.2.2")


def test_channel_plan_gives_every_index_one_role() -> None:
    plan = ChannelPlan(pages=2, disks=3)
    roles = [plan.role(index) for index in range(plan.total)]
    control, pages, disks, mirror = ChannelRole
    assert roles == [control, pages, pages, disks, disks, disks, mirror]
    assert ChannelPlan(0, 0).total == 1
    assert ChannelPlan(2, 0).total == 3


def test_spec_without_disks_has_no_disk_channels() -> None:
    spec = StreamSpec(SECRET, *ENDS, 8000, 4096)
    spec.check()
    assert spec.channels == ChannelPlan(2, 0)


@pytest.mark.parametrize("count", [0, 9])
def test_spec_disk_channel_count_out_of_range_raises(count: int) -> None:
    with pytest.raises(SpecInvalid):
        StreamSpec(SECRET, *ENDS, 8000, 4096, disk_channel_count=count).check()


BAD_DISKS = {
    "keys_twice": (DiskExtent(1, 512), DiskExtent(1, 512)),
    "keys_fall": (DiskExtent(2, 512), DiskExtent(1, 512)),
    "no_sectors": (DiskExtent(1, 513),),
    "empty": (DiskExtent(1, 0),),
    "too_large": (DiskExtent(1, 1 << 60),),
    "negative_key": (DiskExtent(-1, 512),),
    "key_of_33_bits": (DiskExtent(1 << 32, 512),),
    "too_many": tuple(DiskExtent(key, 512) for key in range(257)),
}


@pytest.mark.parametrize("disks", BAD_DISKS.values(), ids=BAD_DISKS.keys())
def test_spec_disks_that_can_not_be_raise(disks: tuple[DiskExtent, ...]) -> None:
    with pytest.raises(SpecInvalid):
        StreamSpec(SECRET, *ENDS, 8000, 0, 0, disks=disks).check()


def test_spec_memory_and_page_channels_belong_together() -> None:
    for ram_bytes, channel_count in ((0, 2), (4096, 0)):
        with pytest.raises(SpecInvalid):
            StreamSpec(SECRET, *ENDS, 8000, ram_bytes, channel_count).check()

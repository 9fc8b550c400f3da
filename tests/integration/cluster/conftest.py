"""One cluster of real daemons for this whole folder, because a start takes seconds: modules remove what they make."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.framework.cluster_rig import MIB, ClusterRig, cluster_rig


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterRig]:
    """Three hosts that give 512 MiB each to their VMs."""
    settings = (("HOST_MEMORY_BYTES", str(512 * MIB)),)
    async with cluster_rig(tmp_path_factory.mktemp("c"), 3, settings) as made:
        yield made

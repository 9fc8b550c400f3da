"""One cluster of real daemons for each module: `HOSTS` and `HOST_SETTINGS` of the module say of what kind."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.framework.cluster_rig import ClusterRig, cluster_rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ClusterRig]:
    hosts = getattr(request.module, "HOSTS", 2)
    settings = getattr(request.module, "HOST_SETTINGS", ())
    async with cluster_rig(tmp_path_factory.mktemp("c"), hosts, settings) as made:
        yield made

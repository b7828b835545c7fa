import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.models.fault_server import Upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    here = Upstream()
    server = await asyncio.start_server(here.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    here.base_url = f"http://127.0.0.1:{port}/v1"
    yield here
    server.close()
    await server.wait_closed()

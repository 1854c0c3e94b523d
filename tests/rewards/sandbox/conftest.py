"""The sandbox, cold and warm."""

import pytest

from ruyi_rl.rewards.sandbox import Sandbox, SandboxOptions


@pytest.fixture(params=["cold", "warm"])
def sandbox(confinable, request):
    with Sandbox(SandboxOptions(seconds=20, warm=request.param == "warm")) as opened:
        yield opened

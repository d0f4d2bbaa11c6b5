"""What a program gets wrong is said before anything is done."""

import os

import pytest

from tests.client.connected import client_for, filled
from zcserver.errors import MisuseError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["*.log", b"*.log", ""])
async def test_a_single_pattern_is_not_taken_for_a_list_of_them(served, local, make_context, option, pattern):
    filled(served / "l", 1)
    filled(local / "o", 1)
    async with client_for(served, make_context) as client:
        with pytest.raises(MisuseError, match="lists of patterns"):
            await client.sync("/", local, delete=True, **{option: pattern})
    assert os.listdir(local) == ["o"]

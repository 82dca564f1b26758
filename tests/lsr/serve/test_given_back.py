import asyncio

from lsr_server.memory import give_back
from tests.kit import resident


def test_free_memory_between_blocks_that_are_used_goes_back_to_the_system():
    blocks = [bytes(100_000) for _ in range(1000)]
    used = blocks[::20]
    before = resident()
    del blocks
    asyncio.run(give_back())
    assert resident() < before - 60_000_000
    assert len(used) == 50

"""The order of batches and of changes between them, with a bank that only notes what passes."""

import asyncio
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from lsr.serve.modules import Version
from lsr_onnx.rows import TokenizedText
from lsr_server.batches import WAITING, BatchScheduler
from lsr_server.rests import REST


class Passed:
    """A bank of adapters of some sizes, which notes the first letters of the adapters of each batch."""

    def __init__(self, sizes, seconds=()):
        self.versions = {name: Version({}, {}, size) for name, size in sizes.items()}
        self.bank = SimpleNamespace(versions=self.versions)
        self.rows = {name: TokenizedText(name, version, {}) for name, version in self.versions.items()}
        self.batches = []
        self.seconds = dict(seconds)  # that a row of an adapter takes, of a clock
        self.now = 0.0

    def answers(self, rows):
        self.batches.append("".join(row.adapter[0] for row in rows))
        self.now += sum(self.seconds.get(row.adapter, 0) for row in rows)
        return [None] * len(rows)

    def find_version(self, name):
        return self.bank.versions.get(name)

    def clock(self):
        return self.now


def asked_of(batches, passed, counts):
    """Ask each adapter as many texts, at once, and return the tasks."""
    return [asyncio.create_task(batches.answers([passed.rows[name]] * count)) for name, count in counts.items()]


def test_each_tenant_has_its_turn_and_large_adapters_pass_apart_in_every_other_batch():
    passed = Passed({"wide": 512, "high": 300, "anna": 8, "ben": 64})

    async def call():
        batches = BatchScheduler(passed, 6, 40, 0, passed.clock)
        asked = asked_of(batches, passed, {"wide": 8, "anna": 15, "ben": 2, "high": 2})
        await asyncio.sleep(0.1)
        with pytest.raises(HTTPException, match="at most 40 texts at once, by --max-queue") as raised:
            await batches.answers([passed.rows["anna"]] * 41)
        assert raised.value.status_code == 422  # nobody should try again
        with pytest.raises(HTTPException, match="too many texts are waiting"):  # half of the room are its own
            await batches.answers([passed.rows["anna"]] * 6)
        with pytest.raises(HTTPException, match="at most 8 at once for an adapter of this size"):
            await batches.answers([passed.rows["wide"]] * 9)
        running = asyncio.create_task(batches.run())
        await asyncio.gather(*asked)
        running.cancel()

    asyncio.run(call())
    assert passed.batches == ["wh", "ababaa", "wh", "aaaaaa", "ww", "aaaaa", "ww", "ww"]


def test_rows_whose_client_has_left_hold_no_place_in_the_queue():
    passed = Passed({"anna": 8, "ben": 8})

    async def call():
        batches = BatchScheduler(passed, 8, 20, 0)
        for task in asked_of(batches, passed, {"anna": 10, "ben": 10}):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        (asked,) = asked_of(batches, passed, {"anna": 10})
        await asyncio.sleep(0)
        running = asyncio.create_task(batches.run())
        assert await asked == [None] * 10
        running.cancel()

    asyncio.run(call())
    assert "".join(passed.batches) == "a" * 10


class Panic(BaseException):
    """As of a package in Rust."""


@pytest.mark.parametrize("error", [StopIteration, Panic, MemoryError])
def test_after_a_change_or_a_batch_that_fails_in_any_way_others_go_on(error):
    passed = Passed({"anna": 8})
    answers = passed.answers

    def fail(*_):
        raise error("no")

    async def call():
        batches = BatchScheduler(passed, 8, 20, 0)
        running = asyncio.create_task(batches.run())
        for change in (fail, list):
            with pytest.raises((RuntimeError, MemoryError), match="no") if change is fail else nullcontext():
                assert await asyncio.wait_for(batches.change(change), 10) == []
        for passed.answers in (fail, answers):
            (asked,) = asked_of(batches, passed, {"anna": 1})
            with pytest.raises((RuntimeError, MemoryError), match="no") if passed.answers is fail else nullcontext():
                assert await asyncio.wait_for(asked, 10) == [None]
        running.cancel()

    asyncio.run(call())


def test_large_adapters_get_a_fifth_of_the_time_while_others_are_asked():
    # A batch of the large one takes .1 s, so it rests for .4 s: 36 batches of .011 s are shorter than that, 37 longer.
    passed = Passed({"wide": 512, "anna": 8}, {"wide": 0.1, "anna": 0.011})

    async def call():
        batches = BatchScheduler(passed, 1, 200, 0, passed.clock)
        large, others = asked_of(batches, passed, {"wide": 4, "anna": 80})
        running = asyncio.create_task(batches.run())
        await others
        await asyncio.sleep(0.05)  # the clock stands still: the last rest lasts
        while_others_were_asked = len(passed.batches)
        passed.now += 2  # nobody else is asked any more, and so large ones need no rest
        await asyncio.wait_for(large, 10)
        running.cancel()
        return while_others_were_asked

    assert asyncio.run(call()) == 80 + 3
    assert "".join(passed.batches) == "w" + 37 * "a" + "w" + 37 * "a" + "w" + 6 * "a" + "w"


def test_a_change_waits_until_the_bank_has_rested_from_the_one_before_and_batches_pass_meanwhile():
    passed = Passed({"anna": 8})
    seconds = 0.03
    spans = []

    def change():
        begin = time.monotonic()
        time.sleep(seconds)
        spans.append((begin, time.monotonic()))

    async def call():
        batches = BatchScheduler(passed, 8, 40, 0)
        running = asyncio.create_task(batches.run())
        changes = asyncio.gather(batches.change(change), batches.change(change))
        while not changes.done():
            await batches.answers([passed.rows["anna"]])
            await asyncio.sleep(0.005)
        running.cancel()

    asyncio.run(call())
    (_, first_end), (second_begin, _) = spans
    assert second_begin - first_end >= REST * seconds
    assert len(passed.batches) > 5


def test_other_reading_of_the_bank_gets_a_fifth_of_the_time_while_tenants_are_asked():
    # Reading takes .1 s, so it rests for .4 s: 36 batches of .011 s are shorter than that, 37 longer.
    passed = Passed({"anna": 8}, {"anna": 0.011})

    def read():
        passed.batches.append("r")
        passed.now += 0.1
        return "features"

    async def call():
        batches = BatchScheduler(passed, 1, 200, 0, passed.clock)
        running = asyncio.create_task(batches.run())
        assert [await batches.read(read) for _ in range(3)] == ["features"] * 3  # nobody is asked, so it needs no rest
        assert passed.batches == ["r"] * 3
        passed.now += 10
        await batches.answers([passed.rows["anna"]])
        reads = asyncio.gather(*(batches.read(read) for _ in range(3)))
        for _ in range(100):
            await batches.answers([passed.rows["anna"]])
            await asyncio.sleep(0.005)  # the clock stands still, and the event loop gives others their turn
        between = "".join(passed.batches[4:]).split("r")
        passed.now += 10
        await asyncio.wait_for(reads, 10)
        running.cancel()
        return between

    between = asyncio.run(call())
    assert all(len(batches) >= 37 for batches in between[1:-1])
    assert 2 <= len(between) - 1 <= 3


def waiting_rows():
    return WAITING.collect()[0].samples[0].value


def test_the_number_of_waiting_rows_is_whole_also_while_they_are_sorted():
    passed = Passed({"anna": 8, "ben": 8, "cleo": 8})
    seen = []

    class Watched(dict):
        """The versions of a bank; who looks one up is another thread that asks for the metric, too."""

        def get(self, name):
            seen.append(waiting_rows())
            return super().get(name)

    passed.bank.versions = Watched(passed.versions)

    async def call():
        batches = BatchScheduler(passed, 4, 40, 0)
        asked = asked_of(batches, passed, {"anna": 2, "ben": 3, "cleo": 4})
        running = asyncio.create_task(batches.run())
        await asyncio.gather(*asked)
        running.cancel()

    asyncio.run(call())
    assert seen == [9] * 9 + [5] * 5 + [1]  # rows that wait before each of three batches of four

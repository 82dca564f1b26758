"""Large texts in JSON are parsed and rendered one at a time, with rests in which others are answered."""

import asyncio

import pytest

from lsr_server.aside import REST, Aside
from lsr_server.tenants import FitClock


class Clock:
    """Seconds that pass only while a call computes or somebody sleeps."""

    def __init__(self):
        self.seconds = 100.0
        self.slept = []

    def __call__(self):
        return self.seconds

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.seconds += seconds

    def compute(self, seconds, result):
        def call():
            self.seconds += seconds
            if isinstance(result, Exception):
                raise result
            return result

        return call


async def at_once(aside, *calls):
    return await asyncio.gather(*map(aside.run, calls), return_exceptions=True)


def test_a_call_waits_until_the_thread_has_rested_from_the_one_before():
    clock = Clock()
    aside = Aside(clock, clock, clock.sleep)
    mistake = ValueError("a mistake")
    calls = [clock.compute(1, "a"), clock.compute(2, mistake), clock.compute(0, "c")]
    assert asyncio.run(at_once(aside, *calls)) == ["a", mistake, "c"]
    assert clock.slept == pytest.approx([REST * 1, REST * 2])


@pytest.mark.parametrize("is_busy", [True, False])
def test_after_a_fit_the_thread_rests_for_the_steps_after_which_the_fit_has_not(is_busy):
    clock = Clock()
    aside = Aside(clock, clock, clock.sleep)
    paused = []
    fit_clock = FitClock(lambda: is_busy, clock, paused.append)

    def fit():
        fit_clock.begin()
        for seconds in (1, 2):
            clock.seconds += seconds
            fit_clock.check_time()
        clock.seconds += 0.5  # after the last step

    asyncio.run(aside.run(fit, fit_clock.count_rested))
    asyncio.run(at_once(aside, clock.compute(1, "next")))
    assert sum(paused) + sum(clock.slept) == pytest.approx(REST * 3.5)
    assert paused == ([REST * 1, REST * 2] if is_busy else [])


def test_who_comes_after_the_rest_does_not_wait():
    clock = Clock()
    aside = Aside(clock, clock, clock.sleep)
    asyncio.run(at_once(aside, clock.compute(1, "a")))
    clock.seconds += REST * 1
    assert asyncio.run(at_once(aside, clock.compute(1, "b"))) == ["b"]
    assert clock.slept == []

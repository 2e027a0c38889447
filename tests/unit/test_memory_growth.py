"""When a process reaches its limit: only even growth gives a number, and the number holds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from worker_guard.memory.growth import HORIZON, WINDOW_S, Forecast, Growth

MB = 1_000_000
EACH_S = 30.0
HOUR = int(WINDOW_S / EACH_S)

Series = Callable[[int], float]
"""Megabytes at each reading."""


def grown(series: Series, readings: int) -> Growth:
    growth = Growth()
    for n in range(readings):
        growth.add(max(0, int(series(n) * MB)), n * EACH_S)
    return growth


def forecast(series: Series, readings: int = HOUR, limit_mb: float = 200.0) -> Forecast | None:
    return grown(series, readings).forecast(int(limit_mb * MB))


def noise(rng: random.Random, correlation: float, size_mb: float) -> Series:
    """Each reading remembers so much of the one before; 1: a random walk."""
    last = 0.0

    def series(n: int) -> float:
        nonlocal last
        last = correlation * last + rng.gauss(0, size_mb)
        return 100 + last

    return series


def test_even_growth_is_foreseen() -> None:
    """60 MB in the hour, 40 MB to go."""
    found = forecast(lambda n: 100 + n * 0.5, limit_mb=200)
    assert found is not None
    in_s = found.at_mono - (HOUR - 1) * EACH_S
    assert in_s == pytest.approx(40.5 / 0.5 * EACH_S, rel=0.02)
    assert found.earliest_mono <= found.at_mono <= found.latest_mono


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(lambda n: 100, id="flat"),
        pytest.param(lambda n: 200 - n * 0.5, id="shrinks"),
        pytest.param(lambda n: 100 + 50 * (n > 60), id="a step"),
        pytest.param(lambda n: 100 + 25 * (n > 40) + 25 * (n > 80), id="two steps"),
        pytest.param(lambda n: 100 + min(n, 90), id="a plateau after growth"),
        pytest.param(lambda n: 100 + 60 * (1 - math.exp(-n / 40)), id="a cache that fills"),
        pytest.param(lambda n: 100 + n % 20 * 3, id="a sawtooth"),
        pytest.param(lambda n: 100 + n % 19 * 3, id="a sawtooth nearly as long as a block"),
        pytest.param(lambda n: 100 + (n + 20) % 100 * 0.9, id="a sawtooth of 50 minutes"),
        pytest.param(lambda n: 150 if n == 60 else 100, id="a peak"),
        pytest.param(lambda n: 195 + n * 0.5, id="over the limit"),
        pytest.param(lambda n: 100 + n * 0.01, id="too far away"),
    ],
)
def test_what_gives_no_number(series: Series) -> None:
    """Nothing here says that the limit will be reached."""
    assert forecast(series) is None


def test_short_and_patchy_readings_give_no_number() -> None:
    """Not 20 minutes yet, or a block without readings."""
    assert forecast(lambda n: 100 + n, readings=40) is None
    assert forecast(lambda n: 100 + n, readings=42, limit_mb=160) is not None
    growth = Growth()
    for n in [*range(75), *range(102, 121)]:
        growth.add((100 + n) * MB, n * EACH_S)
    assert growth.forecast(250 * MB) is None
    assert Growth().forecast(MB) is None


def test_what_loads_first_and_grows_then_is_foreseen_by_its_growth() -> None:
    """The first half of the hour says nothing of the second."""
    found = forecast(lambda n: min(20 + 10 * n, 100) + n * 0.5, limit_mb=180)
    assert found is not None
    assert found.at_mono == pytest.approx(160 * EACH_S, rel=0.05)


def test_a_sawtooth_that_takes_hours_gives_no_number_after_its_first_tooth() -> None:
    """It held as much before. Where it goes beyond that, it does grow."""
    teeth = grown(lambda n: 100 + n % 400 * 0.3, 400 + 300)
    assert teeth.forecast(240 * MB) is None
    beyond = grown(lambda n: 100 + n % 400 * 0.3 + n * 0.1, 400 + 390)
    assert beyond.forecast(320 * MB) is not None


def test_a_peak_is_no_memory_that_was_held() -> None:
    """A single high reading hours ago does not hide a leak."""
    growth = grown(lambda n: 400 if n == 10 else 100 + n * 0.3, 4 * HOUR)
    assert growth.forecast(300 * MB) is not None


def test_what_is_kept_is_bounded() -> None:
    """The readings of an hour, however long it goes on."""
    assert len(grown(lambda n: 100.0, 10 * HOUR).points) <= HOUR + 1


SERIES = [1_000, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", SERIES)
@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])
def test_noise_gives_a_number_in_at_most_one_of_a_hundred_series(
    correlation: float, count: int
) -> None:
    """With a limit near by: independent noise, a slow one, and a random walk."""
    rng = random.Random(f"noise {correlation}")
    numbers = 0
    for _ in range(count):
        growth = grown(noise(rng, correlation, rng.uniform(0.1, 3.0)), HOUR)
        near = int(growth.points[-1][1] * rng.uniform(1.02, 1.3))
        numbers += growth.forecast(near) is not None
    assert numbers <= count / 100, numbers


@pytest.mark.parametrize("count", SERIES)
def test_growth_with_noise_is_foreseen_within_its_interval(count: int) -> None:
    """Most get a number, and few of these are far off."""
    rng = random.Random("growth")
    errors: list[float] = []
    outside = 0
    for _ in range(count):
        rate_mb, to_go = rng.uniform(0.2, 1.0), rng.uniform(20, 0.9 * HORIZON * HOUR)
        size_mb = rng.uniform(0, 5) * rate_mb
        limit_at = HOUR - 1 + to_go
        found = forecast(
            lambda n, rate=rate_mb, size=size_mb: 100 + n * rate + rng.gauss(0, size),  # type: ignore[misc]
            limit_mb=100 + limit_at * rate_mb,
        )
        if found is not None:
            outside += not found.earliest_mono <= limit_at * EACH_S <= found.latest_mono
            errors.append(abs(found.at_mono - limit_at * EACH_S) / (to_go * EACH_S))
    assert len(errors) >= 0.9 * count, len(errors)
    assert outside <= 0.01 * len(errors), outside
    errors.sort()
    assert errors[len(errors) // 2] < 0.05
    assert errors[int(len(errors) * 0.99)] < 0.25

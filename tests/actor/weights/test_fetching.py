"""Fetching versions while sampling goes on: order, failures and pauses."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from actor.engine import WeightsUnusable
from actor.weights.fetching import WeightsFetcher
from broker.errors import WeightsCorrupt, WeightsMissing
from broker.weights.store import Fetched


class Source:
    """A source of versions in which the test decides how long a fetch takes and which fail."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: dict[int, Exception] = {}

    def __call__(self, version: int) -> Fetched:
        self.asked.append(version)
        assert self.gate.wait(10)
        if version in self.broken:
            raise self.broken[version]
        return Fetched(
            version, "0" * 64, Path(f"v{version}"), {"fetch": 0.0, "verify": 0.0}, {"copied": 0, "kept": 0, "delta": 0}
        )


def settled(fetching: WeightsFetcher, version: int, seconds: float = 10.0) -> Fetched:
    until = time.monotonic() + seconds
    while (fetched := fetching.get(version)) is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    return fetched


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def fetching(source):
    made = WeightsFetcher(source)
    yield made
    source.gate.set()
    made.close()


def test_a_version_is_fetched_once_and_stays_available_until_taken(fetching, source):
    assert settled(fetching, 3).directory == Path("v3")
    assert settled(fetching, 3).version == 3
    assert source.asked == [3]
    assert fetching.in_progress == 3
    fetching.taken()
    assert fetching.in_progress is None
    assert settled(fetching, 4).version == 4


def test_versions_published_faster_than_they_are_fetched_still_arrive(fetching, source):
    source.gate.clear()
    for version in (1, 2, 3):
        assert fetching.get(version) is None
    source.gate.set()
    assert settled(fetching, 3).version == 1
    fetching.taken()
    assert settled(fetching, 3).version == 3
    assert source.asked == [1, 3]


@pytest.mark.parametrize("error", [WeightsCorrupt, WeightsUnusable])
def test_a_failure_is_reported_once_per_try_and_repeated_after_a_growing_pause(fetching, source, error):
    source.broken[1] = error("v1/model.safetensors: expected sha256 a, found b")
    times = []
    for _ in range(3):
        with pytest.raises(error, match="expected sha256 a, found b"):
            settled(fetching, 1)
        times.append(time.monotonic())
        assert fetching.failing
    assert times[1] - times[0] >= 0.1
    assert times[2] - times[1] >= 0.2
    del source.broken[1]
    assert settled(fetching, 1).version == 1


@pytest.mark.alone
def test_another_version_does_not_wait_for_one_that_failed(fetching, source):
    source.broken[1] = WeightsMissing("version 1 is not there")
    for _ in range(2):
        with pytest.raises(WeightsMissing):
            settled(fetching, 1)
    start = time.monotonic()
    assert settled(fetching, 2).version == 2
    assert time.monotonic() - start < 0.2
    assert not fetching.failing


def test_a_version_rejected_by_the_engine_is_fetched_again_later(fetching, source):
    settled(fetching, 5)
    fetching.reject(5)
    assert fetching.failing and fetching.get(5) is None
    assert settled(fetching, 5).version == 5
    assert source.asked == [5, 5]

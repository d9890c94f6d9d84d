"""Verdicts by content hash, shared by the runs of one server: bounded, counted, never an error."""

from __future__ import annotations

import pytest

from tests.broker.builders import EveryRole, connect, verdict


@pytest.fixture
def broker(redis_url: str):
    broker = connect(redis_url)
    yield broker
    broker.close()


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def known(broker: EveryRole, *numbers: int) -> list[bool]:
    return [found is not None for found in broker.known_verdicts("arithmetic", [key(n) for n in numbers])]


def test_what_one_run_stored_another_knows(broker, redis_url):
    broker.remember_verdicts({key(1): verdict("pass"), key(2): verdict("fail")}, 1 << 20)
    other = connect(redis_url, name="another")
    first, second, third = other.known_verdicts("arithmetic", [key(1), key(2), key(3)])
    assert (first, second, third) == (verdict("pass"), verdict("fail"), None)
    other.close()


def test_an_error_is_never_stored(broker):
    with pytest.raises(ValueError, match="only pass and fail"):
        broker.remember_verdicts({key(1): verdict("pass"), key(2): verdict("error")}, 1 << 20)
    assert known(broker, 1, 2) == [False, False]


def test_hits_and_misses_are_counted_per_verifier_over_all_runs(broker, redis_url):
    broker.remember_verdicts({key(1): verdict()}, 1 << 20)
    known(broker, 1, 2, 3)
    other = connect(redis_url, name="another")
    other.known_verdicts("lean", [key(1)])
    counts = other.cache_counts()
    other.close()
    assert {name: counts[name] for name in counts if name != "bytes"} == {
        "hits:arithmetic": 1, "misses:arithmetic": 2, "hits:lean": 1, "misses:lean": 0,
    }  # fmt: skip


def test_the_least_recently_used_make_room_and_the_bound_holds(broker):
    broker.remember_verdicts({key(0): verdict()}, 1 << 20)
    one = broker.cache_counts()["bytes"]
    most = 10 * one
    for number in range(1, 10):
        assert broker.remember_verdicts({key(number): verdict()}, most) == 0
    assert known(broker, 0) == [True]  # used now: 1 is the oldest
    assert broker.remember_verdicts({key(10): verdict(), key(11): verdict()}, most) == 2
    assert known(broker, *range(12)) == [True, False, False, *[True] * 9]
    assert broker.cache_counts()["bytes"] == most
    broker.remember_verdicts({key(number): verdict() for number in range(100, 1100)}, most)
    assert broker.cache_counts()["bytes"] <= most
    assert broker._redis.hlen("{sieve-verdicts}:verdicts") == broker._redis.zcard("{sieve-verdicts}:used") == 10


def test_storing_twice_costs_once_and_too_large_an_entry_is_left_out(broker):
    for _ in range(3):
        broker.remember_verdicts({key(1): verdict()}, 1 << 20)
    one = broker.cache_counts()["bytes"]
    assert one < 1000
    broker.remember_verdicts({key(2): verdict()}, one - 1)
    assert known(broker, 1, 2) == [True, False]


def test_counted_bytes_are_about_what_redis_spends(broker):
    before = int(broker._redis.info("memory")["used_memory"])
    broker.remember_verdicts({key(number): verdict() for number in range(5000)}, 1 << 30)
    spent = int(broker._redis.info("memory")["used_memory"]) - before
    assert 0.5 < broker.cache_counts()["bytes"] / spent < 2


def test_what_cannot_be_read_is_not_known(broker):
    broker._redis.hset("{sieve-verdicts}:verdicts", key(1), b"\xff\x00")  # type: ignore[arg-type]
    assert known(broker, 1) == [False]

"""The schema number of a run: what was written with another one is refused by whoever connects, in one line."""

from __future__ import annotations

import json

import pytest
import redis

from broker.errors import EX_DATA, RunConflict
from broker.queue.actor_client import ActorClient
from broker.queue.admin_client import AdminClient
from broker.queue.connection import RunConnection
from broker.queue.learner_client import LearnerClient
from broker.queue.verifier_client import VerifierClient
from broker.queue.wire import SCHEMA
from broker.settings import BrokerSettings, RunSettings
from tests.broker.builders import connect, open_run, spec

SPEC_OF_SCHEMA_1 = {
    "schema": 1, "fingerprint": "f" * 64, "seed": 7, "steps": 5, "gone": "a field that this release does not know",
}  # fmt: skip
KEY = "{sieve:test}:spec"


def write(url: str, body: dict[str, object]) -> None:
    with redis.Redis.from_url(url) as client:
        client.set(KEY, json.dumps(body))


@pytest.mark.parametrize("client", [RunConnection, ActorClient, VerifierClient, LearnerClient, AdminClient])
def test_no_client_connects_to_a_run_of_another_schema(redis_url: str, client: type[RunConnection]) -> None:
    write(redis_url, SPEC_OF_SCHEMA_1)
    with pytest.raises(RunConflict) as caught:
        client.connect(BrokerSettings(), RunSettings(name="test"), url=redis_url)
    said = str(caught.value)
    assert said == (
        f"run 'test' is in Redis with schema 1, and this release reads and writes schema {SCHEMA}: give this run "
        f"another run.name, or start it anew with `sieve run CONFIG --fresh`"
    )
    assert caught.value.exit_code == EX_DATA


def test_a_run_without_a_number_is_refused_too(redis_url: str) -> None:
    write(redis_url, spec().model_dump(mode="json"))
    with pytest.raises(RunConflict, match=f"no schema number, and this release reads and writes schema {SCHEMA}"):
        connect(redis_url)


def test_on_a_shared_server_only_another_name_helps(redis_url: str) -> None:
    """There --fresh would move the run directory aside and leave the keys."""
    write(redis_url, SPEC_OF_SCHEMA_1)
    settings = BrokerSettings.model_validate({"url": redis_url})
    with pytest.raises(RunConflict, match=r"another run\.name$"):
        ActorClient.connect(settings, RunSettings(name="test"))


def test_a_run_of_another_schema_that_appears_later_is_neither_read_nor_overwritten(redis_url: str) -> None:
    broker = connect(redis_url)
    write(redis_url, SPEC_OF_SCHEMA_1)
    for call in (
        lambda: broker.run_spec(fresh=True),
        lambda: broker.take("a", 1),
        lambda: broker.check_run("f" * 64),
    ):
        with pytest.raises(RunConflict, match="schema 1"):
            call()
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == [KEY.encode()]
    broker.close()


def test_another_run_on_the_same_server_is_not_touched_by_it(redis_url: str) -> None:
    write(redis_url, SPEC_OF_SCHEMA_1)
    other = connect(redis_url, "other")
    run = open_run(other)
    assert other.run_spec(fresh=True) == run
    with redis.Redis.from_url(redis_url) as client:
        body = json.loads(client.get("{sieve:other}:spec"))  # type: ignore[arg-type]
    assert body["schema"] == SCHEMA
    other.close()

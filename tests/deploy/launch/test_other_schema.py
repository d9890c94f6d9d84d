"""A run that another release wrote into a shared Redis: every command refuses it in one line and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rich.console import Console

from broker.errors import EX_DATA, RunConflict
from broker.queue.admin_client import AdminClient
from deploy.config.load import load
from deploy.config.tree import Config
from deploy.launch.launcher import launch
from deploy.observe.status import open_broker, status

Write = Callable[[Any], Path]


@pytest.fixture
def config(tree: dict[str, Any], write: Write, redis_url: str) -> Config:
    config = load(write({**tree, "broker": {"url": redis_url}}), environment={}, check="none")
    with redis.Redis.from_url(redis_url) as client:
        client.set("{sieve:" + config.run.name + "}:spec", json.dumps({"schema": 1, "fingerprint": "f" * 64}))
    return config


def test_run_status_and_audit_refuse_it_before_anything_is_started(config: Config, redis_url: str) -> None:
    console = Console(record=True)

    def audit() -> None:
        with open_broker(config, AdminClient) as connection:
            connection.audit()

    for command in (
        lambda: launch(config, console, resume=False, fresh=False, live=False),
        lambda: status(config, console, watch=False),
        audit,
    ):
        with pytest.raises(
            RunConflict, match=r"^run '[^']+' is in Redis with schema 1, .* another run\.name$"
        ) as caught:
            command()
        assert caught.value.exit_code == EX_DATA and "\n" not in str(caught.value)
    with redis.Redis.from_url(redis_url) as client:
        assert len(client.keys()) == 1  # type: ignore[arg-type]

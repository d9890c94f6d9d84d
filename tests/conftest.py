"""Fixtures every room's tests share: a real Redis of their own, started by the code under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from broker.runtime.endpoint import connect_once
from broker.runtime.redis_program import Binary, find_binary
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, RunSettings

# The same examples in every run, so that a red test is red again; explore with --hypothesis-profile=default.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def server_binary() -> Binary:
    """The Redis or Valkey program that the tests run on."""
    return find_binary()


@pytest.fixture(scope="session")
def redis_server(server_binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One private server for the whole session; a test that kills servers starts its own."""
    run = RunSettings(directory=tmp_path_factory.mktemp("redis"))
    with Server.start(BrokerSettings(), run, server_binary) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    """Url (with password) of the session's server, emptied before each test."""
    redis_server.ensure()
    with connect_once(redis_server.url) as client:
        client.flushall()
    return redis_server.url

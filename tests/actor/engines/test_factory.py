"""The engines' factory: which receiving end of broadcasts an engine gets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from actor.engines.factory import open_receiver
from actor.engines.torch.broadcast import TorchReceiver
from actor.engines.torch.engine import TorchEngine
from broker.settings import WeightsSettings
from tests.actor.actor_process import Tree, tree

LOG = logging.getLogger("sieve.test")
OPENAI = {"engine": "openai", "openai": {"urls": ["http://127.0.0.1:1"]}}


def config(path: Path, broadcast: Any, **actor: object) -> Tree:
    return tree(path, path, **actor).model_copy(update={"weights": WeightsSettings(broadcast=broadcast)})


@pytest.fixture
def engine() -> TorchEngine:
    return TorchEngine.__new__(TorchEngine)  # only its type matters here


@pytest.mark.parametrize("actor", [{"engine": "torch"}, {"engine": "vllm"}, OPENAI], ids=lambda one: one["engine"])
def test_without_broadcasts_no_engine_receives(
    tmp_path: Path, engine: TorchEngine, actor: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert open_receiver(config(tmp_path, "none", **actor), engine, LOG) is None
    assert caplog.text == ""


def test_the_torch_engine_receives_over_gloo(tmp_path: Path, engine: TorchEngine) -> None:
    assert isinstance(open_receiver(config(tmp_path, "gloo", engine="torch"), engine, LOG), TorchReceiver)


@pytest.mark.parametrize(
    ("broadcast", "actor"), [("nccl", {"engine": "torch"}), ("gloo", OPENAI), ("nccl", OPENAI)], ids=str
)
def test_an_engine_that_cannot_receive_that_way_reads_the_store_and_says_so(
    tmp_path: Path, engine: TorchEngine, broadcast: str, actor: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert open_receiver(config(tmp_path, broadcast, **actor), engine, LOG) is None
    assert f"engine {actor['engine']} cannot receive over {broadcast}: it reads versions from the store" in caplog.text

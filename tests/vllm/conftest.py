"""What the vLLM tests share: a tiny Llama that vLLM's CPU kernels can serve, its versions, and engines that are opened
once for many tests (a start takes ten seconds and more).

Each file asks for `vllm.v1`: where vLLM is not installed, plain `vllm` finds this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actor.engine import Engine
from actor.engines.factory import open_engine
from tests.actor.actor_process import tree
from tests.vllm.served_llama import ARGUMENTS, EOS, MAX_NEW, save, served_llama, spec


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model's directory, with a tokenizer: version 0 of every run here."""
    return save(served_llama(0), tmp_path_factory.mktemp("served") / "base")


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Path]]:
    """Three models and their published directories."""
    models = [served_llama(seed) for seed in (1, 2, 3)]
    root = tmp_path_factory.mktemp("versions")
    return models, [save(model, root / f"v{index}") for index, model in enumerate(models)]


@pytest.fixture(scope="session")
def open_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens an engine on a model directory; more keywords are settings of the actor, or of actor.vllm."""
    opened: list[Engine] = []

    def opener(
        path: Path, *, eos: tuple[int, ...] = (EOS,), max_new_tokens: int = MAX_NEW, lora: Any = None, **actor: Any
    ) -> Engine:
        vllm = {"clear_cache": actor.pop("clear_cache", True)}
        vllm["arguments"] = {**ARGUMENTS, **actor.pop("arguments", {})}
        vllm["unsafe_arguments"] = actor.pop("unsafe_arguments", {})
        vllm["unsafe_plugins"] = actor.pop("unsafe_plugins", [])
        config = tree(tmp_path_factory.mktemp("run"), path, engine="vllm", vllm=vllm, **actor)
        config = config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})})
        run = spec(eos, max_new_tokens).model_copy(update={"unsafe": config.actor.vllm.unsafe})
        opened.append(open_engine(config, run, "test"))
        return opened[-1]

    yield opener
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def shared_engine(open_vllm: Callable[..., Any], model_path: Path) -> Any:
    return open_vllm(model_path, max_batch=16)


@pytest.fixture
def sampler(shared_engine: Any) -> Any:
    """The shared engine with nothing in flight; whatever version the test before loaded."""
    shared_engine.cancel({request.ticket.group_id for request in shared_engine._requests.values()})
    return shared_engine

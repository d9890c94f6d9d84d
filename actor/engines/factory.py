"""Which engine samples: from the settings to an engine with nothing loaded. Heavy imports happen here, on use."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

from actor.engine import ArgumentRefused, Engine, EngineMissing, ModelUnusable
from actor.settings import ActorConfig
from actor.weights.broadcast import Receiver
from broker.queue.state import RunSpec

QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
"""vLLM's environment unless it is set: nothing is sent anywhere, nothing fetched, and a service's stderr is its log."""
KERNELS = "128"
"""oneDNN's kernels that a worker on a CPU keeps, one for each matrix shape and number of tokens in a step. By default
they are 1,024 of about 0.4 MB, which completions computed again after updates, in ever new numbers, all fill."""


def prepare(engine: str) -> None:
    """Import what `engine` needs: seconds that an actor spends while it waits for its run anyway.

    Raises EngineMissing if a package is not installed."""
    if engine == "torch":
        try:
            import actor.engines.torch.engine
            import actor.engines.torch.model
        except ModuleNotFoundError as error:
            raise EngineMissing(
                f"actor.engine = torch needs the package {error.name}, which is not installed: pip install sieve-rl"
            ) from error
    if engine == "vllm":
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import actor.engines.vllm.engine
        except ImportError as error:
            raise EngineMissing(
                f"actor.engine = vllm needs vLLM, which cannot be imported ({error}): pip install 'sieve-rl[vllm]'"
            ) from error
    if engine == "openai":
        try:
            import actor.engines.openai.engine  # noqa: F401
        except ModuleNotFoundError as error:
            raise EngineMissing(
                f"actor.engine = openai needs the package {error.name}, which is not installed: "
                f"pip install 'sieve-rl[openai]'"
            ) from error


def open_engine(config: ActorConfig, spec: RunSpec, name: str, index: int = 0) -> Engine:
    """The engine that actor.engine names, for the run's end tokens and length; `name` signs its completions, `index`
    chooses among the servers of `actor.openai`.

    Raises EngineMissing if its package is not installed and ModelUnusable if the model cannot be served."""
    if config.actor.engine == "torch":
        return _torch(config, spec, name)
    if config.actor.engine == "vllm":
        return _vllm(config, spec, name)
    return _openai(config, spec, name, index)


def open_receiver(config: ActorConfig, engine: Engine, log: logging.Logger) -> Receiver | None:
    """The receiving end of broadcasts that `weights.broadcast` names.

    None for `none`, and for an engine that cannot receive that way, which is logged: it reads versions from the store.
    """
    match config.weights.broadcast, config.actor.engine:
        case "none", _:
            return None
        case "gloo", "torch":
            from actor.engines.torch.broadcast import TorchReceiver
            from actor.engines.torch.engine import TorchEngine

            assert isinstance(engine, TorchEngine)
            return TorchReceiver(engine)
        case ("gloo" | "nccl") as broadcast, "vllm":
            from actor.engines.vllm.broadcast import VllmReceiver
            from actor.engines.vllm.engine import VllmEngine
            from actor.weights.checks import VersionFiles

            assert isinstance(engine, VllmEngine)
            return VllmReceiver(engine, VersionFiles(config.model.path, adapters=False), direct=broadcast == "nccl")
        case broadcast, name:
            log.info("engine %s cannot receive over %s: it reads versions from the store", name, broadcast)
            return None


def _torch(config: ActorConfig, spec: RunSpec, name: str) -> Engine:
    prepare("torch")
    import torch

    from actor.engines.torch.engine import TorchEngine
    from actor.engines.torch.model import device_of, open_model

    settings = config.actor
    if settings.threads:
        torch.set_num_threads(settings.threads)
    policy, decode = open_model(config.model, device_of(settings.device), settings.prefill_tokens)
    return TorchEngine(
        policy,
        decode,
        eos=spec.eos_token_ids,
        max_new_tokens=spec.max_new_tokens,
        max_batch=settings.max_batch,
        name=name,
    )


def _vllm(config: ActorConfig, spec: RunSpec, name: str) -> Engine:
    prepare("vllm")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    from actor.engines.tokenizer import open_tokenizer
    from actor.engines.vllm import arguments as vllm_arguments
    from actor.engines.vllm.engine import VllmEngine
    from actor.engines.vllm.plugins import refuse_plugins
    from actor.weights.checks import VersionFiles

    settings, path = config.actor, config.model.path
    if settings.vllm.unsafe != spec.unsafe:
        raise ArgumentRefused(
            f"this actor would sample with {', '.join(settings.vllm.unsafe) or 'nothing unsafe'}, and the run was "
            f"opened with {', '.join(spec.unsafe) or 'nothing unsafe'}: it is part of the run's identity; start the "
            f"actor with the run's own, or a new run (run.name) with this actor's"
        )
    if settings.device not in ("auto", current_platform.device_type):
        raise ModelUnusable(
            f"actor.device = {settings.device}, but the installed vLLM runs on {current_platform.device_type}: use "
            f"auto, and CUDA_VISIBLE_DEVICES to choose among GPUs"
        )
    cpu = current_platform.is_cpu()
    if cpu:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    if cpu and settings.threads:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs) if field.init}
    try:
        refuse_plugins(settings.vllm.unsafe_plugins)
        arguments = vllm_arguments.engine(
            settings.vllm.arguments,
            config.model,
            unsafe=settings.vllm.unsafe_arguments,
            broadcast=config.weights.broadcast,
            max_batch=settings.max_batch,
            prefill_tokens=settings.prefill_tokens,
            cpu=cpu,
            known=known,
        )
    except ValueError as error:
        raise ArgumentRefused(str(error)) from None
    size = _vocabulary(path, spec)
    return VllmEngine(
        arguments,
        VersionFiles(path, adapters=config.model.lora is not None),
        open_tokenizer(path, size),
        eos=spec.eos_token_ids,
        vocabulary=size,
        max_new_tokens=spec.max_new_tokens,
        clear_cache=settings.vllm.clear_cache,
        name=name,
    )


def _openai(config: ActorConfig, spec: RunSpec, name: str, index: int) -> Engine:
    prepare("openai")
    from actor.engines.openai.engine import OpenAIEngine
    from actor.engines.tokenizer import open_tokenizer
    from actor.weights.checks import VersionFiles

    settings, model = config.actor, config.model
    servers = settings.openai.urls
    if index >= len(servers):
        raise ArgumentRefused(f"this is actor {index}, and actor.openai.urls has {len(servers)}: give each a server")
    if model.lora is not None:
        raise ArgumentRefused("model.lora is set, and actor.engine = openai loads whole models: use the engine vllm")
    size = _vocabulary(model.path, spec)
    return OpenAIEngine(
        settings.openai,
        servers[index],
        VersionFiles(model.path, adapters=False),
        open_tokenizer(model.path, size),
        eos=spec.eos_token_ids,
        vocabulary=size,
        max_new_tokens=spec.max_new_tokens,
        max_batch=settings.max_batch,
        name=name,
    )


def _vocabulary(path: Path, spec: RunSpec) -> int:
    """How many tokens the model has. Raises ModelUnusable if the run ends answers with others."""
    from actor.engines.tokenizer import vocabulary

    size = vocabulary(path)
    outside = [token for token in spec.eos_token_ids if not 0 <= token < size]
    if outside:
        raise ModelUnusable(
            f"end token {outside[0]} is outside the model's vocabulary of {size}; the tokenizer at model.path belongs "
            f"to another model"
        )
    return size

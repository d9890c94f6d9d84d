"""Which engine samples: from the settings to an engine with nothing loaded. Heavy imports happen here, on use."""

from __future__ import annotations

from actor.engine import Engine, EngineMissing
from actor.settings import ActorConfig
from broker.state import RunSpec


def prepare(engine: str) -> None:
    """Import what `engine` needs: seconds that an actor spends while it waits for its run anyway.

    Raises EngineMissing if a package is not installed."""
    if engine == "torch":
        try:
            import actor.torch_engine
            import actor.torch_model  # noqa: F401
        except ModuleNotFoundError as error:
            raise EngineMissing(
                f"actor.engine = torch needs the package {error.name}, which is not installed: pip install sieve-rl"
            ) from error


def open_engine(config: ActorConfig, spec: RunSpec, name: str) -> Engine:
    """The engine that actor.engine names, for the run's end tokens and length; `name` signs its completions.

    Raises EngineMissing if its package is not installed and ModelUnusable if the model cannot be served."""
    if config.actor.engine == "torch":
        return _torch(config, spec, name)
    raise EngineMissing(f"actor.engine = {config.actor.engine} has no implementation here; the only one is torch")


def _torch(config: ActorConfig, spec: RunSpec, name: str) -> Engine:
    prepare("torch")
    import torch

    from actor.torch_engine import TorchEngine
    from actor.torch_model import device_of, open_model

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

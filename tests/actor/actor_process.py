"""An actor process, `python actor_process.py CONFIG-JSON URL`, and the configuration that the tests use."""

from __future__ import annotations

import sys
from pathlib import Path

from actor.service import ActorService
from actor.settings import ActorSettings
from broker.settings import BrokerSettings, MetricsSettings, ModelSettings, RunSettings, Section, WeightsSettings


class Tree(Section):
    run: RunSettings = RunSettings()
    broker: BrokerSettings = BrokerSettings(lease_seconds=1.0, connect_seconds=10.0)
    metrics: MetricsSettings = MetricsSettings()
    weights: WeightsSettings = WeightsSettings()
    model: ModelSettings
    actor: ActorSettings = ActorSettings(max_batch=16)


def tree(directory: Path, model: Path, **actor: object) -> Tree:
    return Tree(
        run=RunSettings(name="test", directory=directory),
        model=ModelSettings(path=model),
        actor=ActorSettings.model_validate({"max_batch": 16, **actor}),
    )


def serve(config: str, url: str) -> None:
    """Run an actor until it ends, then end this process with its exit code."""
    sys.exit(ActorService(Tree.model_validate_json(config), url=url).run())


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])

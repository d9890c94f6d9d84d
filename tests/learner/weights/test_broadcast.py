"""The learner's choice among broadcasts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from broker.errors import EX_USAGE
from broker.settings import WeightsSettings
from broker.weights.broadcast import BroadcastCoordinator
from learner.weights.broadcast import Broadcaster, BroadcastMetrics, open_broadcaster
from learner.weights.nccl_link import BroadcastUnavailable
from tests.broker.builders import connect


def opened(redis_url: str, broadcast: Any) -> Broadcaster | None:
    coordinator, metrics = BroadcastCoordinator(connect(redis_url)), BroadcastMetrics(CollectorRegistry())
    log = logging.getLogger("sieve.test")
    return open_broadcaster(WeightsSettings(broadcast=broadcast), coordinator, metrics, log, lambda reason, wait: False)


def test_none_broadcasts_nothing_and_gloo_does(redis_url: str) -> None:
    assert opened(redis_url, "none") is None
    assert isinstance(opened(redis_url, "gloo"), Broadcaster)


@pytest.mark.skipif(torch.cuda.is_available(), reason="NCCL may be available on a GPU")
def test_nccl_without_a_gpu_is_refused_before_anything_is_sent(redis_url: str) -> None:
    with pytest.raises(BroadcastUnavailable, match=r"weights\.broadcast = nccl, .* use none, or gloo") as refused:
        opened(redis_url, "nccl")
    assert refused.value.exit_code == EX_USAGE

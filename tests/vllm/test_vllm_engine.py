"""The vLLM engine against plain forward passes and its protocol's invariants."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm installs it")

from served_llama import EOS, VOCABULARY, drain
from tiny_llama import ragged, reference, ticket

TOLERANCE = 1e-4  # float32, per token


def test_log_probs_equal_a_plain_forward_pass_for_ragged_prompts(sampler, versions):
    models, directories = versions
    sampler.load(1, directories[0])
    prompts = ragged(7, vocabulary=VOCABULARY)
    for question in prompts:
        sampler.submit(ticket(question.index, n=5, version=1), question)
    done = drain(sampler)
    assert sorted((one.gid, one.idx) for one in done) == sorted((f"0:{p.index}", i) for p in prompts for i in range(5))
    for one in done:
        np.testing.assert_allclose(one.behaviour, reference(models[0], prompts[one.prompt], one.ids), atol=TOLERANCE)
        assert one.spans == ((1, 0, len(one.ids)),)
        assert EOS not in one.ids[:-1]

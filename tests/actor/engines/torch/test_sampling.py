"""The random numbers of a completion, and tokens drawn from exactly the model's distribution."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actor.engines.torch.sampling import draw, uniforms


@given(st.integers(0, 2**63 - 1), st.integers(0, 4094))
def test_uniforms_depend_on_seed_and_idx_only(seed, idx):
    here = uniforms(seed, idx, 8)
    assert (here == uniforms(seed, idx, 16)[:8]).all()
    assert ((here >= 0) & (here < 1)).all()
    assert (here != uniforms(seed + 1, idx, 8)).any()
    assert (here != uniforms(seed, idx + 1, 8)).any()


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 50), st.floats(0.1, 20))
def test_a_drawn_token_is_the_one_whose_share_of_the_cdf_holds_the_uniform(seed, vocabulary, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, vocabulary, generator=generator) * scale
    uniform = torch.rand(7, generator=generator, dtype=torch.float64)
    tokens, logprobs = draw(logits, uniform)
    exact = torch.log_softmax(logits.double(), -1)
    cdf = exact.exp().cumsum(-1)
    for row, token in enumerate(tokens.tolist()):
        low = cdf[row, token - 1] if token else 0.0
        assert low - 1e-6 <= uniform[row] <= cdf[row, token] + 1e-6
        assert abs(logprobs[row] - exact[row, token]) < 1e-5


def test_impossible_tokens_are_never_drawn_even_at_the_edges():
    never = float("-inf")
    logits = torch.tensor([[never, 0.0, never, 0.0, never]]).repeat(4, 1)
    edge = np.nextafter(1.0, 0.0)
    tokens, logprobs = draw(logits, torch.tensor([0.0, 0.4999, 0.5, edge], dtype=torch.float64))
    assert tokens.tolist() == [1, 1, 3, 3]
    assert torch.allclose(logprobs, torch.full((4,), -np.log(2.0), dtype=torch.float32))


def test_log_probs_are_float32_of_the_raw_logits_whatever_the_models_dtype():
    logits = (torch.randn(3, 11, generator=torch.Generator().manual_seed(1)) * 4).to(torch.bfloat16)
    tokens, logprobs = draw(logits, torch.full((3,), 0.5, dtype=torch.float64))
    assert logprobs.dtype == torch.float32
    assert torch.equal(logprobs, torch.log_softmax(logits.float(), -1).gather(1, tokens[:, None])[:, 0])

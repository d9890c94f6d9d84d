"""The sampling parameters of requests to vLLM, and the log-prob in its answer to a scoring request."""

from __future__ import annotations

from collections.abc import Collection

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from actor.engine import request_seed


def sampling(ends: Collection[int], limit: int, seed: int, idx: int) -> SamplingParams:
    """Parameters that sample completion `idx` from the policy's own distribution, to an end token or `limit` tokens."""
    return SamplingParams(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=limit,
        stop_token_ids=sorted(ends),
        ignore_eos=True,  # the end tokens of tokenizer and generation_config; the run's are above
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        seed=request_seed(seed, idx),
        skip_clone=True,
    )


def scoring(token: int) -> SamplingParams:
    """Parameters of a request for log π of `token` after a prompt, at the position where a token is sampled.

    It takes the path of sampling: no log-probs of the prompt are requested, for which vLLM would compute all keys and
    values anew instead of reusing what its prefix cache holds."""
    return SamplingParams(
        temperature=1.0,
        max_tokens=1,
        detokenize=False,
        logprob_token_ids=[token],
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def score(output: RequestOutput, token: int) -> float:
    """log π of `token` in the answer to its scoring request."""
    return float(output.outputs[0].logprobs[0][token].logprob)

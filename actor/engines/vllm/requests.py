"""The sampling parameters of requests to vLLM, and the log-probs in its answers to scoring requests."""

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


def scoring(last: int) -> SamplingParams:
    """Parameters that score a given sequence, sent without its last token `last`.

    The log-prob of `last` is requested at the position of the one token sampled after the prompt, so that the whole
    sequence may fill all positions."""
    return SamplingParams(
        temperature=1.0,
        max_tokens=1,
        detokenize=False,
        prompt_logprobs=0,
        logprob_token_ids=[last],
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scores(output: RequestOutput, ids: list[int], first: int) -> list[float]:
    """log π of `ids[first:]` in the answer to a scoring request for `ids`."""
    before = output.prompt_logprobs or []
    found = [before[at][ids[at]].logprob for at in range(first, len(ids) - 1)]
    return [*found, output.outputs[0].logprobs[0][ids[-1]].logprob]

"""The requests to a vLLM server and the validation of its answers. Pure: no connection, no clock, no weights.

Completions are sampled through `/inference/v1/generate`, vLLM's endpoint for token ids in and out, and the only one
that also reports which weights sampled which token.

An answer is accepted only as a whole: as many log-probs as tokens and for these very tokens, ids of the model's
vocabulary, an end that fits its reason, and spans that partition it. Anything else would end up in the training data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actor.engine import EngineError, request_seed
from broker.errors import EX_DATA

GENERATE = "/inference/v1/generate"
NOT_FINITE = -9999.0
"""vLLM's value for a log-prob that is −∞ or not a number."""
ROUNDING = 1e-3
"""The largest value above 0 of a log-prob that counts as a rounding error."""
ENVELOPE_BYTES, TOKEN_BYTES = 1 << 16, 512
"""The largest answer: bytes around the tokens, and per token with its log-prob (vLLM 0.32 needs about 140)."""


class AnswerUnusable(EngineError):
    """The server's answer is invalid; nothing of it is used."""

    exit_code: ClassVar[int] = EX_DATA


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Score(_Read):
    token_id: int
    logprob: float


class _Scores(_Read):
    content: list[_Score]


class _Span(_Read):
    version: str
    start: int
    end: int


class _Choice(_Read):
    finish_reason: str | None
    token_ids: list[int]
    logprobs: _Scores
    weight_versions: list[_Span] | None = None


class _Answer(_Read):
    choices: list[_Choice] = Field(min_length=1, max_length=1)


class _Logprob(_Read):
    logprob: float


class _Entry(_Score):
    top_logprobs: list[_Score]


class _Entries(_Read):
    content: list[_Entry]


class _ScoredChoice(_Read):
    logprobs: _Entries
    weight_versions: list[_Span] | None = None


class _ScoredAnswer(_Read):
    choices: list[_ScoredChoice] = Field(min_length=1, max_length=1)
    prompt_logprobs: list[dict[str, _Logprob] | None]


class ServedModel(_Read):
    """An entry of /v1/models."""

    id: str
    max_model_len: int = Field(ge=2)


class Served(_Read):
    """The answer of /v1/models."""

    data: list[ServedModel] = Field(min_length=1)


class Stamp(_Read):
    """The answer of /weight_info."""

    weight_version: str = Field(max_length=200)


class Paused(_Read):
    """The answer of /is_paused."""

    is_paused: bool


@dataclass(frozen=True)
class Sampled:
    """One completion as the server reports it."""

    tokens: list[int]
    logprobs: NDArray[np.float32]
    """log π of the sampled tokens at temperature 1, (T,)."""
    finish: str
    """`stop` or `length`; another word if the server aborted it."""
    spans: list[tuple[str, int, int]] | None
    """(stamp, start, end) partitioning [0, T); None from a server that does not report weight versions."""


R = TypeVar("R", bound=BaseModel)


def read(kind: type[R], body: bytes, what: str) -> R:
    """`body` parsed as JSON of the type `kind`. Raises AnswerUnusable naming the field that does not fit."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][:6]) or "the whole"
        raise AnswerUnusable(
            f"{what} does not answer like vLLM 0.32: {where}: {first['msg'][:160]}; check that actor.openai.urls names "
            "a vLLM server"
        ) from None


def request(
    model: str, prompt: Sequence[int], ends: Collection[int], limit: int, seed: int, idx: int
) -> dict[str, Any]:
    """The body of a request that samples from the policy's own distribution, to an end token or `limit` tokens."""
    return {
        "model": model,
        "token_ids": list(prompt),
        "sampling_params": {
            "n": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "watermarking": False,
            "max_tokens": limit,
            "stop_token_ids": sorted(ends),
            "ignore_eos": True,  # the server's own end tokens; the run's are above
            "logprobs": 0,
            "detokenize": False,
            "seed": request_seed(seed, idx),
        },
    }


def scoring(model: str, tokens: Sequence[int]) -> dict[str, Any]:
    """The body of a request for the log-probs of a given sequence.

    The last token's is requested at the position of the one token sampled after the others, so that the sequence may
    fill all positions of the model. The server returns as many log-probs as are requested, the sampled token's first;
    therefore two are requested."""
    last = tokens[-1]
    return {
        "model": model,
        "token_ids": list(tokens[:-1]),
        "sampling_params": {
            "n": 1,
            "temperature": 1.0,
            "max_tokens": 1,
            "ignore_eos": True,
            "prompt_logprobs": 0,
            "logprobs": 2,
            "logprob_token_ids": [last, int(last == 0)],
            "detokenize": False,
        },
    }


def most_bytes(tokens: int) -> int:
    """The size of the largest body that an answer about `tokens` tokens may have."""
    return ENVELOPE_BYTES + TOKEN_BYTES * tokens


def sampled(body: bytes, *, vocabulary: int, ends: Collection[int], limit: int) -> Sampled:
    """The completion in an answer to `request`. Raises AnswerUnusable with the value, the limit and the remedy."""
    choice = read(_Answer, body, GENERATE).choices[0]
    tokens, scores = choice.token_ids, choice.logprobs.content
    if choice.finish_reason not in ("stop", "length"):
        return Sampled(tokens, np.empty(0, np.float32), choice.finish_reason or "none", None)
    if not 1 <= len(tokens) <= limit:
        raise AnswerUnusable(f"a completion has {len(tokens)} tokens, requested were 1 … {limit}; {_REMEDY}")
    if len(scores) != len(tokens):
        raise AnswerUnusable(f"a completion has {len(tokens)} tokens and {len(scores)} log-probs; {_REMEDY}")
    for at, (token, score) in enumerate(zip(tokens, scores, strict=True)):
        if not 0 <= token < vocabulary:
            raise AnswerUnusable(
                f"token {at} is {token}, the model at model.path has ids 0 … {vocabulary - 1}; start the server with "
                "that model"
            )
        if score.token_id != token:
            raise AnswerUnusable(f"token {at} is {token}, its log-prob is of token {score.token_id}; {_REMEDY}")
    ended = tokens[-1] in ends
    early = next((at for at, token in enumerate(tokens[:-1]) if token in ends), None)
    if early is not None or (choice.finish_reason == "stop") != ended or (not ended and len(tokens) < limit):
        raise AnswerUnusable(
            f"a completion of {len(tokens)} tokens (at most {limit}) ended for {choice.finish_reason} with token "
            f"{tokens[-1]}, end tokens are {sorted(ends)[:8]}{'' if early is None else f', one is at {early}'}; "
            f"{_REMEDY}"
        )
    logprobs = _logprobs([score.logprob for score in scores])
    spans = choice.weight_versions
    if spans is None:
        return Sampled(tokens, logprobs, choice.finish_reason, None)
    edges = [0, *(span.end for span in spans)]
    if (
        not spans
        or edges[-1] != len(tokens)
        or any(span.start != edges[at] or span.end <= span.start for at, span in enumerate(spans))
    ):
        raise AnswerUnusable(
            f"weight_versions {[(span.start, span.end) for span in spans][:6]} do not partition {len(tokens)} tokens; "
            f"{_REMEDY}"
        )
    return Sampled(
        tokens, logprobs, choice.finish_reason, [(span.version[:200], span.start, span.end) for span in spans]
    )


def scored(body: bytes, tokens: Sequence[int], first: int) -> tuple[NDArray[np.float32], list[str] | None]:
    """The log-probs of `tokens[first:]` in an answer to `scoring`, and the stamps of the weights that gave them.

    Raises AnswerUnusable."""
    answer = read(_ScoredAnswer, body, GENERATE)
    rows, choice = answer.prompt_logprobs, answer.choices[0]
    content = choice.logprobs.content
    if len(rows) != len(tokens) - 1 or len(content) != 1:
        raise AnswerUnusable(
            f"log-probs of {len(tokens) - 1} prompt tokens and 1 sampled one were requested, {len(rows)} and "
            f"{len(content)} came; {_REMEDY}"
        )
    last = {entry.token_id: entry.logprob for entry in (content[0], *content[0].top_logprobs)}
    found = [(rows[at] or {}).get(str(tokens[at])) for at in range(first, len(tokens) - 1)]
    if None in found or tokens[-1] not in last:
        raise AnswerUnusable(f"the log-prob of a requested token is missing; {_REMEDY}")
    values = [entry.logprob for entry in found if entry is not None]
    stamps = None if choice.weight_versions is None else [span.version for span in choice.weight_versions]
    return _logprobs([*values, last[tokens[-1]]]), stamps


def _logprobs(values: list[float]) -> NDArray[np.float32]:
    scores = np.array(values, dtype=np.float32)
    wrong = ~np.isfinite(scores) | (scores <= NOT_FINITE)
    if wrong.any():
        raise AnswerUnusable(
            f"log-prob {int(wrong.argmax())} is {values[int(wrong.argmax())]} (vLLM writes {NOT_FINITE} for −∞ and "
            "NaN); serve in float32, or train with a lower learning rate"
        )
    if (scores > ROUNDING).any():
        raise AnswerUnusable(
            f"log-prob {int(scores.argmax())} is {scores.max():g}, over 0: these are logits; start the server with "
            f"--logprobs-mode raw_logprobs"
        )
    return scores


_REMEDY = (
    "use a vLLM server of the version that sieve-rl[vllm] requires, without proxies or plugins that change answers"
)

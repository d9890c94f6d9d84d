"""Wire types: the messages that services exchange, and their msgpack encoding.

One message is one msgpack map with the schema number under `_`. Token ids (int32) and log-probabilities (float32)
travel as raw little-endian bytes. Reading checks in this order: byte cap, msgpack shape, schema number, pydantic
validation. Every failure is a `WireError` with a short reason, which the caller dead-letters. Nothing is ever pickled.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgpack
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.settings import Lane, VerifierName

SCHEMA = 3
"""Number of the format of messages and of the run's keys in Redis; data of another number is refused."""
MAX_BYTES = 64 << 20
"""Default limit on one packed message."""

GroupId = Annotated[str, Field(pattern=r"^e?[0-9]{1,12}:[0-9]{1,12}$")]
Outcome = Literal["pass", "fail", "error"]
Finish = Literal["stop", "length"]
Span = tuple[int, int, int]


class WireError(ValueError):
    """A message that cannot be read; the reason is short, bounded and free of the message's own content."""


class Message(BaseModel):
    """Base of the wire types: immutable, without unknown fields or conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Prompt(Message):
    """One prompt, as every service reads it."""

    index: Annotated[int, Field(ge=0)]
    text: str
    tokens: bytes
    """Token ids, int32 little-endian; tokenised once, by the learner that opens the run."""
    verifier: VerifierName
    record: dict[str, Any]
    """What the verifier needs to judge an answer; never shown to the model."""


class Ticket(Message):
    """Permission to sample one group: completions `missing` (a subset of 0 … n−1) of one prompt."""

    group_id: GroupId
    lane: Lane
    prompt: Annotated[int, Field(ge=0)]
    n: Annotated[int, Field(ge=1, le=4096)]
    seed: Annotated[int, Field(ge=0)]
    version: Annotated[int, Field(ge=0)]
    """Train lane: the actor samples with this version or a newer one. Eval lane: with exactly this version."""
    attempt: Annotated[int, Field(ge=1)]
    missing: tuple[int, ...]
    """Indices not offered yet: all of 0 … n−1 unless an earlier attempt offered some."""


class Completion(Message):
    """One sampled answer with the sampler's log-probabilities."""

    group_id: GroupId
    lane: Lane
    prompt: Annotated[int, Field(ge=0)]
    idx: Annotated[int, Field(ge=0, le=4095)]
    n: Annotated[int, Field(ge=1, le=4096)]
    tokens: bytes
    """Sampled token ids including the end token when one was sampled; int32 little-endian, shape (T,)."""
    logprobs: bytes
    """log μ(y_t | y_<t) of each sampled token at temperature 1, from the sampler; float32 little-endian, shape (T,)."""
    spans: tuple[Span, ...]
    """(version, start, end): half-open token ranges that partition [0, T), in order."""
    finish: Finish
    text: str
    """Decoded answer without special tokens, which the verifier judges."""
    actor: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Completion:
        if len(self.tokens) % 4 or len(self.tokens) != len(self.logprobs):
            raise ValueError(f"{len(self.tokens)} token bytes against {len(self.logprobs)} log-prob bytes")
        if not self.tokens:
            raise ValueError("no tokens")
        if self.idx >= self.n:
            raise ValueError(f"idx {self.idx} outside the group of {self.n}")
        logprobs = self.sampler_logprobs
        if not np.isfinite(logprobs).all() or (logprobs > 1e-3).any():
            raise ValueError("log-probs must be finite and ≤ 0")
        if (self.ids < 0).any():
            raise ValueError("token ids must be ≥ 0")
        at = 0
        for version, start, end in self.spans:
            if version < 0 or start != at or end <= start:
                raise ValueError(f"version spans do not partition the {len(logprobs)} tokens")
            at = end
        if at != len(logprobs):
            raise ValueError(f"version spans do not partition the {len(logprobs)} tokens")
        return self

    @property
    def ids(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Token ids, int32, shape (T,)."""
        return np.frombuffer(self.tokens, "<i4")

    @property
    def sampler_logprobs(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """log μ per token, float32, shape (T,)."""
        return np.frombuffer(self.logprobs, "<f4")

    @property
    def oldest(self) -> int:
        """The oldest version that sampled a token of this completion."""
        return min(version for version, _, _ in self.spans)


class Verdict(Message):
    """A verifier's judgement of one completion."""

    outcome: Outcome
    """`error`: unknown, because something other than the answer failed; tried again, never trained as wrong."""
    reason: Annotated[str, Field(max_length=64)]
    """A short code from the verifier's fixed list; a metric label."""
    seconds: Annotated[float, Field(ge=0)]
    verifier: Annotated[str, Field(max_length=64)]
    """Name and version, as in `arithmetic/1`."""
    detail: Annotated[str, Field(max_length=2000)] = ""
    """Why it failed, for a human reader."""
    answer: Annotated[str, Field(max_length=2000)] = ""
    """Of a pass: the answer in canonical form. Two right answers are the same iff these are equal (for diversity)."""


M = TypeVar("M", bound=Message)


def pack(message: Message) -> bytes:
    """The message as msgpack bytes, with the schema number."""
    # model_dump would walk every field recursively; the fields here are flat and already validated.
    body = {name: getattr(message, name) for name in type(message).model_fields}
    packed = msgpack.packb({"_": SCHEMA, **body}, use_bin_type=True)
    return bytes(packed)


def unpack(kind: type[M], data: bytes, *, max_bytes: int = MAX_BYTES) -> M:
    """One message of type `kind`.

    Raises:
        WireError: over `max_bytes`, malformed, of another schema, or invalid.
    """
    if len(data) > max_bytes:
        raise WireError(f"{kind.__name__}: {len(data)} bytes, over the limit of {max_bytes}")
    try:
        body = msgpack.unpackb(
            data, raw=False, strict_map_key=True, use_list=False, max_bin_len=max_bytes, max_str_len=max_bytes
        )
    except (ValueError, TypeError, RecursionError) as error:  # msgpack's own errors derive from ValueError
        raise WireError(f"{kind.__name__}: not msgpack ({type(error).__name__})") from None
    if not isinstance(body, dict):
        raise WireError(f"{kind.__name__}: not a map")
    schema = body.pop("_", None)
    if schema != SCHEMA:
        raise WireError(f"{kind.__name__}: schema {str(schema)[:16]!r}, this release reads {SCHEMA}")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:32] for part in first["loc"][:3]) or "message"
        raise WireError(f"{kind.__name__}: {where}: {first['msg'][:160]}") from None
    except RecursionError:
        raise WireError(f"{kind.__name__}: nested too deeply") from None


def int32(values: Any) -> bytes:
    """Token ids as int32 little-endian bytes."""
    return np.ascontiguousarray(values, dtype="<i4").tobytes()


def float32(values: Any) -> bytes:
    """Log-probabilities as float32 little-endian bytes."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()

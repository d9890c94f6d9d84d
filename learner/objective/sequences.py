"""The input and output of an objective: `Sequences` and `Coefficients`. Holds tensors and their checks, no objective.

A quantity that objectives may read is one field of `Sequences` with its metadata (`per_token` or `per_sequence`). The
checks, `select`, `joined`, `to`, and what the learner builds for a micro-batch and gathers for a step all follow the
fields, so that nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Collection
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def per_token(dtype: torch.dtype, *, finite: bool = False) -> Mapping[str, Any]:
    """Metadata of a field of shape (N, T). `finite`: values inside the mask must be."""
    return {"per_token": True, "dtype": dtype, "finite": finite}


def per_sequence(dtype: torch.dtype, *, finite: bool = False) -> Mapping[str, Any]:
    """Metadata of a field of shape (N,). `finite`: all values must be."""
    return {"per_token": False, "dtype": dtype, "finite": finite}


@dataclass(frozen=True)
class Sequences:
    """N verified completions, padded to T tokens; whole groups, because baselines are taken within a group.

    Log-probabilities are natural logarithms at temperature 1 of the completion's tokens, prompt excluded. Values
    outside `mask` are never read. A float field may have any floating dtype, an integer field any integer dtype. Raises
    ValueError for shapes or dtypes that do not fit, and for log-probabilities or log Ẑ that are not finite.
    """

    policy: Tensor = field(metadata=per_token(torch.float32, finite=True))
    """log π_θ(y_t | y_<t) under the weights being trained, detached; (N, T) float32."""
    sampler: Tensor = field(metadata=per_token(torch.float32, finite=True))
    """log μ(y_t | y_<t) as the sampler recorded it, whatever mixture of versions that was; (N, T) float32."""
    base: Tensor = field(metadata=per_token(torch.float32, finite=True))
    """log π_b(y_t | y_<t) under the frozen base model; (N, T) float32."""
    mask: Tensor = field(metadata=per_token(torch.bool))
    """True where there is a token; (N, T) bool."""
    passed: Tensor = field(metadata=per_sequence(torch.bool))
    """v(x, y): the verifier's pass; (N,) bool."""
    group: Tensor = field(metadata=per_sequence(torch.int64))
    """Any integer that samples of one ticket share; (N,) int64."""
    log_z: Tensor = field(metadata=per_sequence(torch.float32, finite=True))
    """log Ẑ of the sample's prompt, estimated without the sample; (N,) float32."""
    staleness: Tensor = field(metadata=per_sequence(torch.int64))
    """Versions between the oldest weights that sampled a token and the weights being trained; (N,) int64."""

    def __post_init__(self) -> None:
        if self.policy.dim() != 2:
            raise ValueError(f"policy has shape {tuple(self.policy.shape)}; log-probabilities are (N, T)")
        shape = tuple(self.policy.shape)
        for name, declared in quantities().items():
            value: Tensor = getattr(self, name)
            expected = shape if declared["per_token"] else shape[:1]
            if tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, expected {expected} to go with policy {shape}"
                )
            if _kind(value.dtype) != _kind(declared["dtype"]):
                raise ValueError(f"{name} has dtype {value.dtype}, expected {declared['dtype']}")
        for name, declared in quantities().items():
            if declared["finite"]:
                self._require_finite(name, getattr(self, name), declared["per_token"])

    def _require_finite(self, name: str, value: Tensor, per_token: bool) -> None:
        bad = self.mask & ~torch.isfinite(value) if per_token else ~torch.isfinite(value)
        if not bool(bad.any()):
            return
        place = bad.nonzero()[0].tolist()
        if not per_token:
            raise ValueError(f"{name} must be finite, and of sequence {place[0]} is {value[place[0]].item()}")
        raise ValueError(
            f"{name} log-probability of sequence {place[0]}, token {place[1]} is {value[tuple(place)].item()}: "
            f"log-probabilities must be finite; look for weights that diverged or logits that were masked"
        )

    def __len__(self) -> int:
        return int(self.policy.shape[0])

    @property
    def tokens(self) -> Tensor:
        """Tokens per sequence; (N,) float32."""
        return self.mask.sum(1).float()

    @cached_property
    def token_log_rho(self) -> Tensor:
        """log π_θ/μ per token, 0 outside the mask; (N, T) float32."""
        return torch.where(self.mask, self.policy.float() - self.sampler.float(), 0.0)

    @cached_property
    def log_rho(self) -> Tensor:
        """log ρ = log π_θ(y)/μ(y); (N,) float32."""
        return self.token_log_rho.sum(1)

    @cached_property
    def log_target_over_sampler(self) -> Tensor:
        """log p(y)/μ(y) = log π_b − log Ẑ − log μ of a right answer; meaningless where v = 0; (N,) float32."""
        return torch.where(self.mask, self.base.float() - self.sampler.float(), 0.0).sum(1) - self.log_z.float()

    @cached_property
    def log_policy_over_base(self) -> Tensor:
        """log π_θ(y)/π_b(y); (N,) float32."""
        return torch.where(self.mask, self.policy.float() - self.base.float(), 0.0).sum(1)

    def select(self, index: Tensor) -> Sequences:
        """The sequences at `index` (int64 positions or a (N,) bool mask)."""
        return Sequences(**{name: getattr(self, name)[index] for name in quantities()})

    def to(self, device: torch.device | str) -> Sequences:
        """The same sequences on `device`, without what has been computed from them."""
        return Sequences(**{name: getattr(self, name).to(device) for name in quantities()})

    @staticmethod
    def joined(parts: Collection[Sequences]) -> Sequences:
        """One batch out of one or more on the same device, padded with zeros to the longest."""
        width = max(part.mask.shape[1] for part in parts)

        def wide(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, width - values.shape[1])) if values.dim() == 2 else values

        return Sequences(**{name: torch.cat([wide(getattr(part, name)) for part in parts]) for name in quantities()})


def quantities() -> dict[str, Mapping[str, Any]]:
    """Field name → its metadata (`per_token`, `dtype`, `finite`), of every field of Sequences."""
    return {item.name: item.metadata for item in fields(Sequences)}


def _kind(dtype: torch.dtype) -> str:
    return "bool" if dtype == torch.bool else "float" if dtype.is_floating_point else "integer"


@dataclass(frozen=True)
class Coefficients:
    """What multiplies log π_θ in the loss, and the diagnostics of the batch."""

    values: Tensor
    """(N, 1) where all tokens of a sequence share one coefficient, else (N, T); float32, detached, finite."""
    diagnostics: dict[str, Tensor]
    """Scalars, float32; see diagnostics.py."""

"""What an objective is given and what it gives back. Holds tensors and their checks, no objective."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """N verified completions, padded to T tokens; whole groups, because baselines are taken within a group.

    Log-probabilities are natural logarithms at temperature 1 of the completion's tokens, prompt excluded. Values
    outside `mask` are never read. Raises ValueError for shapes that do not fit or log-probabilities that are not
    finite.
    """

    policy: Tensor
    """log π_θ(y_t | y_<t) under the weights being trained, detached; (N, T) float32."""
    sampler: Tensor
    """log μ(y_t | y_<t) as the sampler recorded it, whatever mixture of versions that was; (N, T) float32."""
    base: Tensor
    """log π_b(y_t | y_<t) under the frozen base model; (N, T) float32."""
    mask: Tensor
    """True where there is a token; (N, T) bool."""
    passed: Tensor
    """v(x, y): the verifier's pass; (N,) bool."""
    group: Tensor
    """Any integer that samples of one ticket share; (N,) int64."""
    log_z: Tensor
    """log Ẑ of the sample's prompt, estimated without the sample; (N,) float32."""
    staleness: Tensor
    """Versions between the oldest weights that sampled a token and the weights being trained; (N,) int64."""

    def __post_init__(self) -> None:
        if self.policy.dim() != 2:
            raise ValueError(f"policy has shape {tuple(self.policy.shape)}; log-probabilities are (N, T)")
        shape = tuple(self.policy.shape)
        for name in ("sampler", "base", "mask", "passed", "group", "log_z", "staleness"):
            found = tuple(getattr(self, name).shape)
            expected = shape if name in ("sampler", "base", "mask") else shape[:1]
            if found != expected:
                raise ValueError(f"{name} has shape {found}, expected {expected} to go with policy {shape}")
        for name in ("mask", "passed"):
            if getattr(self, name).dtype != torch.bool:
                raise ValueError(f"{name} has dtype {getattr(self, name).dtype}, expected torch.bool")
        for name in ("policy", "sampler", "base"):
            value = getattr(self, name)
            bad = self.mask & ~torch.isfinite(value)
            if bool(bad.any()):
                row, column = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} log-probability of sequence {row}, token {column} is {value[row, column].item()}: "
                    f"log-probabilities must be finite; look for weights that diverged or logits that were masked"
                )
        if not bool(torch.isfinite(self.log_z).all()):
            raise ValueError("log_z must be finite: clamp Ẑ to at least a small ε before taking its logarithm")

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
        return Sequences(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True)
class Coefficients:
    """What multiplies log π_θ in the loss, and what the batch tells about itself."""

    values: Tensor
    """(N, 1) where all tokens of a sequence share one coefficient, else (N, T); float32, detached, finite."""
    diagnostics: dict[str, Tensor]
    """Scalars, float32; see diagnostics.py."""

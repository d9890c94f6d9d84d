"""The objective's section of the configuration. Holds no mathematics and never imports torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from broker.settings import Section

ObjectiveName = Literal[
    "alpha_dpg",
    "grpo",
    "dr_grpo",
    "rloo",
    "remax",
    "gpg",
    "pass_at_k",
    "unlikeliness",
    "kl",
    "tba",
    "rejection",
]
Correction = Literal["sequence", "token", "band", "mask", "none"]
ControlVariate = Literal["loo", "min_variance", "none"]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ObjectiveSettings(Section):
    """Which objective, and how it corrects for the staleness of its samples."""

    name: ObjectiveName = "alpha_dpg"
    alpha: Unit = 0.5
    """α-DPG: 0 covers the filtered base distribution (KL(p‖π)), 1 seeks its mode (REINFORCE on the pass rate)."""
    alpha_schedule: tuple[tuple[Unit, Unit], ...] = ()
    """(progress, α) points joined by straight lines, progress = step / steps; replaces `alpha` when not empty."""
    correction: Correction = "sequence"
    """How π_θ/μ enters. `sequence`: the sequence's ratio, truncated at C. `token`: each token's own ratio, truncated
    at C (TIS). `band`: the token's ratio inside [band_low, band_high], else 0 (IcePop). `mask`: the sequence's
    ratio, 0 when it is above C (MIS). `none`: every sample is treated as drawn from π_θ, which is biased once one is
    stale."""
    truncation: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 5.0
    """C, the largest π_θ/μ that counts; null does not truncate (unbiased, heavy-tailed)."""
    band_low: Annotated[float, Field(gt=0, le=1)] = 0.5
    band_high: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    clip: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 10.0
    """α-DPG: largest W (pseudo-reward). A bias, reported as clipped_share and clipped_mass; it binds most at small α,
    where a looser clip (100) with pooled Z keeps more coverage of hard prompts at the price of variance. null does
    not clip."""
    control_variate: ControlVariate = "min_variance"
    """α-DPG: c in W − c·ρ, always from the group's other samples. `loo`: their mean W (the paper's). `min_variance`:
    Σ Wρ / Σ ρ², held to [0, 1]; on-policy it is `loo`, on stale samples its variance is lower the smaller α is and
    the looser the truncation. `none`: W alone; wrong answers then push nothing."""
    kl_beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """β of a penalty β·log(π_θ/π_b) on the reward of every objective but α-DPG and rejection. null: the objective's
    own value (.05 for `kl` and `tba`, 0 for the others)."""
    pass_k: Annotated[int, Field(ge=1, le=4096)] = 4
    """pass_at_k: the k that is trained; a group with fewer than k samples uses its own size."""
    grpo_std: bool = True
    """grpo, unlikeliness: divide the advantage by the group's standard deviation."""
    grpo_length: bool = True
    """grpo, unlikeliness: average over each sequence's own tokens (biased toward short right answers, as
    published)."""
    unlikeliness_beta: Unit = 0.25
    """unlikeliness: largest share of a right answer's reward that its rank can cost."""

    @model_validator(mode="after")
    def _schedule_in_order(self) -> ObjectiveSettings:
        times = [time for time, _ in self.alpha_schedule]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError(
                f"objective.alpha_schedule has progress values {times}, which must increase strictly from 0 toward 1: "
                f"sort the points and keep one per progress value"
            )
        return self

    def alpha_at(self, progress: float) -> float:
        """α at `progress` = step / steps, clamped to the first and last point of the schedule."""
        if not self.alpha_schedule:
            return self.alpha
        before_time, before = self.alpha_schedule[0]
        if progress <= before_time:
            return before
        for time, value in self.alpha_schedule[1:]:
            if progress <= time:
                return before + (value - before) * (progress - before_time) / (time - before_time)
            before_time, before = time, value
        return before

    @property
    def staleness_ess(self) -> str:
        """The diagnostic that says what stale samples cost this objective: α-DPG weighs by ρ^α, the others by ρ."""
        return "ess_rho_alpha" if self.name == "alpha_dpg" else "ess_rho"

    def beta(self, own: float) -> float:
        """The KL coefficient: the configured one, or the objective's `own`."""
        return own if self.kl_beta is None else self.kl_beta

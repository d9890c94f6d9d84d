"""The configuration section `learner.objective`: one settings class per objective, chosen by `name`.

    learner.objective: {name: alpha_dpg, alpha: 0.25}
    learner.objective: {name: pass_at_k, pass_k: 8, correction: token}
    learner.objective: {factory: "my_package.mine:Mine", options: {strength: 2}}

A settings class is also its objective's entry in the registry: where the mathematics is (`implementation`), whether the
baseline comes from the other samples of a group (`group_baseline`), which diagnostic says what stale samples cost
(`staleness_ess`), and which settings of the run do not fit (`problems`). A new objective is one class here, added to
`BuiltIn`, and one module that implements `learner.objective.protocol.Objective`. Never imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from broker.extensions import installed
from broker.settings import Section

ENTRY_POINTS = "sieve.objectives"
"""The entry-point group in which other distributions offer objectives."""

Correction = Literal["sequence", "token", "band", "mask", "none"]
ControlVariate = Literal["loo", "min_variance", "none"]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
ALPHA, CLIP = 0.5, 10.0
"""Defaults of α-DPG, and the weight W that every other objective's diagnostics are of, so that runs compare."""


class ObjectiveSettings(Section):
    """What every objective has: a name and a correction for the staleness of its samples."""

    implementation: ClassVar[str]
    """`package.module:class` of the objective, called with its settings; imported when the learner builds it."""
    group_baseline: ClassVar[bool] = False
    """Whether its baseline comes from the other samples of a group, so that a group of one has none."""
    staleness_ess: ClassVar[Literal["ess_rho", "ess_rho_alpha"]] = "ess_rho"
    """The diagnostic that says what stale samples cost it: the effective sample size of the ratios it weighs with."""

    name: str
    correction: Correction = "sequence"
    """How π_θ/μ enters. `sequence`: the sequence's ratio, truncated at C. `token`: each token's own ratio, truncated
    at C (TIS). `band`: the token's ratio inside [band_low, band_high], else 0 (IcePop). `mask`: the sequence's
    ratio, 0 when it is above C (MIS). `none`: every sample is treated as drawn from π_θ, which is biased once one is
    stale."""
    truncation: AtLeastOne | None = 5.0
    """C, the largest π_θ/μ that counts; null does not truncate (unbiased, heavy-tailed)."""
    band_low: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`band`: smallest ratio of a token that counts."""
    band_high: AtLeastOne = 5.0
    """`band`: largest ratio of a token that counts."""

    def diagnostic_weight(self, progress: float) -> tuple[float, float | None]:
        """(α, clip) of the weight W that the diagnostics of a step are of; `progress` is step / steps."""
        return ALPHA, CLIP

    def problems(self, group_size: int) -> Iterator[str]:
        """What does not fit groups of `group_size` samples, one line each: key, value, limit and remedy."""
        if group_size == 1 and self.group_baseline:
            yield (
                f"sampling.group_size = 1: the baseline of learner.objective.name = {self.name} is made of the group's "
                f"other samples, and there are none; raise sampling.group_size to at least 2"
            )


class AlphaDpgSettings(ObjectiveSettings):
    """α-DPG: importance-weighted samples of the filtered base model, covering (α = 0) to mode-seeking (α = 1)."""

    implementation: ClassVar[str] = "learner.objective.alpha_dpg:AlphaDpg"
    staleness_ess: ClassVar[Literal["ess_rho", "ess_rho_alpha"]] = "ess_rho_alpha"

    name: Literal["alpha_dpg"] = "alpha_dpg"
    alpha: Unit = ALPHA
    """0 covers the filtered base distribution (KL(p‖π)), 1 seeks its mode (REINFORCE on the pass rate)."""
    alpha_schedule: tuple[tuple[Unit, Unit], ...] = ()
    """(progress, α) points joined by straight lines, progress = step / steps; replaces `alpha` when not empty."""
    clip: AtLeastOne | None = CLIP
    """Largest W (pseudo-reward). A bias, reported as clipped_share and clipped_mass; it binds most at small α, where a
    looser clip (100) with pooled Z keeps more coverage of hard prompts at the price of variance. null does not clip."""
    control_variate: ControlVariate = "min_variance"
    """c in W − c·ρ, always from the group's other samples. `loo`: their mean W (the paper's). `min_variance`:
    Σ Wρ / Σ ρ², held to [0, 1]; on-policy it is `loo`, on stale samples its variance is lower the smaller α is and
    the looser the truncation. `none`: W alone; wrong answers then push nothing."""

    @model_validator(mode="after")
    def _schedule_in_order(self) -> AlphaDpgSettings:
        times = [time for time, _ in self.alpha_schedule]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError(
                f"learner.objective.alpha_schedule has progress values {times}, which must increase strictly from 0 "
                f"toward 1: sort the points and keep one per progress value"
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

    def diagnostic_weight(self, progress: float) -> tuple[float, float | None]:
        return self.alpha_at(progress), self.clip

    def problems(self, group_size: int) -> Iterator[str]:
        if group_size == 1 and self.control_variate != "none":
            yield (
                f"sampling.group_size = 1: learner.objective.control_variate = {self.control_variate} is leave-one-out "
                f"and has no other sample; raise sampling.group_size to at least 2, or set "
                f"learner.objective.control_variate = none"
            )


class PenalisedSettings(ObjectiveSettings):
    """Objectives whose reward may carry a KL penalty."""

    kl_beta: NonNegative = 0.0
    """β of the penalty β·log(π_θ/π_b) on the reward."""


class GroupRelativeSettings(PenalisedSettings):
    """Objectives with GRPO's advantage: the reward relative to its group."""

    group_baseline: ClassVar[bool] = True

    scale_by_std: bool = True
    """Divide the advantage by the group's standard deviation."""
    mean_over_tokens: bool = True
    """Average over each sequence's own tokens (biased toward short right answers, as published)."""


class GrpoSettings(GroupRelativeSettings):
    """GRPO, arXiv 2402.03300."""

    implementation: ClassVar[str] = "learner.objective.grpo:Grpo"

    name: Literal["grpo"] = "grpo"


class DrGrpoSettings(PenalisedSettings):
    """Dr. GRPO, arXiv 2503.20783: GRPO without its scaling by standard deviation and length."""

    implementation: ClassVar[str] = "learner.objective.dr_grpo:DrGrpo"
    group_baseline: ClassVar[bool] = True

    name: Literal["dr_grpo"] = "dr_grpo"


class RlooSettings(PenalisedSettings):
    """RLOO, arXiv 2402.14740: REINFORCE with a leave-one-out baseline."""

    implementation: ClassVar[str] = "learner.objective.rloo:Rloo"
    group_baseline: ClassVar[bool] = True

    name: Literal["rloo"] = "rloo"


class ReMaxSettings(PenalisedSettings):
    """ReMax, arXiv 2310.10505: REINFORCE with the reward of the most probable other answer as baseline."""

    implementation: ClassVar[str] = "learner.objective.remax:ReMax"
    group_baseline: ClassVar[bool] = True

    name: Literal["remax"] = "remax"


class GpgSettings(PenalisedSettings):
    """GPG, arXiv 2504.02546: group policy gradient, scaled up for the groups that give none."""

    implementation: ClassVar[str] = "learner.objective.gpg:Gpg"
    group_baseline: ClassVar[bool] = True

    name: Literal["gpg"] = "gpg"


class PassAtKSettings(PenalisedSettings):
    """pass@k training, arXiv 2503.19595: the chance that one of k samples is right."""

    implementation: ClassVar[str] = "learner.objective.pass_at_k:PassAtK"
    group_baseline: ClassVar[bool] = True

    name: Literal["pass_at_k"] = "pass_at_k"
    pass_k: Annotated[int, Field(ge=1, le=4096)] = 4
    """The k that is trained; a group with fewer than k samples uses its own size."""

    def problems(self, group_size: int) -> Iterator[str]:
        yield from super().problems(group_size)
        if self.pass_k > group_size:
            yield (
                f"learner.objective.pass_k = {self.pass_k}: more than sampling.group_size = {group_size}, so no group "
                f"can estimate it; lower pass_k to {group_size} or raise sampling.group_size"
            )


class UnlikelinessSettings(GroupRelativeSettings):
    """Unlikeliness reward, arXiv 2506.02355: GRPO on a reward that is higher for rare right answers."""

    implementation: ClassVar[str] = "learner.objective.unlikeliness:Unlikeliness"

    name: Literal["unlikeliness"] = "unlikeliness"
    rank_beta: Unit = 0.25
    """β_rank, the largest share of a right answer's reward that its rank can cost."""


class KlSettings(PenalisedSettings):
    """KL-regularised RLVR, arXiv 2206.00761: RLOO on the penalised reward."""

    implementation: ClassVar[str] = "learner.objective.kl:Kl"
    group_baseline: ClassVar[bool] = True

    name: Literal["kl"] = "kl"
    kl_beta: NonNegative = 0.05
    """β of the penalty β·log(π_θ/π_b) on the reward."""


class TbaSettings(PenalisedSettings):
    """TBA, arXiv 2503.18929: trajectory balance. Valid for any behaviour policy; `correction` is not read."""

    implementation: ClassVar[str] = "learner.objective.tba:Tba"
    group_baseline: ClassVar[bool] = True

    name: Literal["tba"] = "tba"
    kl_beta: NonNegative = 0.05
    """β of the penalty β·log(π_θ/π_b) on the reward."""


class RejectionSettings(ObjectiveSettings):
    """Rejection-sampling fine-tuning, arXiv 2308.01825: maximum likelihood on the right answers."""

    implementation: ClassVar[str] = "learner.objective.rejection:Rejection"

    name: Literal["rejection"] = "rejection"


class ThirdPartySettings(ObjectiveSettings):
    """An objective of another distribution: the entry point `name` of the group `sieve.objectives`, or `factory`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]{0,63}$")]
    """Its entry point; with `factory` only what reports call it, by default the factory's own name."""
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")] | None = None
    """`package.module:attribute` of an objective that is neither built in nor installed with an entry point."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the objective's constructor."""


BuiltIn = (
    AlphaDpgSettings | GrpoSettings | DrGrpoSettings | RlooSettings | ReMaxSettings | GpgSettings | PassAtKSettings
    | UnlikelinessSettings | KlSettings | TbaSettings | RejectionSettings
)  # fmt: skip
"""Every objective of this distribution."""

OBJECTIVES: dict[str, type[ObjectiveSettings]] = {cls.model_fields["name"].default: cls for cls in get_args(BuiltIn)}
"""Name → settings class of the built-in objectives."""
DEFAULT = "alpha_dpg"


def known() -> list[str]:
    """The names that `learner.objective.name` understands, the built-in ones first."""
    return [*OBJECTIVES, *(name for name in installed(ENTRY_POINTS) if name not in OBJECTIVES)]


def _named(value: Any) -> Any:
    """Fill in the name where it is left out, and refuse one that nothing answers to."""
    if not isinstance(value, Mapping):
        return value
    factory = value.get("factory")
    if factory is not None:
        return {"name": str(factory).rpartition(":")[2], **value}
    name = value.get("name", DEFAULT)
    if not (isinstance(name, str) and (name in OBJECTIVES or name in known())):
        near = difflib.get_close_matches(str(name), known(), 1)
        hint = f"did you mean {near[0]}?" if near else f"a distribution adds one with an entry point in {ENTRY_POINTS}"
        raise ValueError(f"learner.objective.name = {name!r}: must be one of {', '.join(known())}; {hint}")
    return {**value, "name": name}


def _origin(value: Any) -> str:
    """The tag of `AnyObjective` that `value`, a section or its settings, belongs to."""
    if isinstance(value, Mapping):
        third_party = value.get("factory") is not None or value.get("name", DEFAULT) not in OBJECTIVES
    else:
        third_party = isinstance(value, ThirdPartySettings)
    return "third_party" if third_party else "built_in"


AnyObjective = Annotated[
    Annotated[BuiltIn, Field(discriminator="name"), Tag("built_in")]
    | Annotated[ThirdPartySettings, Tag("third_party")],
    Discriminator(_origin),
    BeforeValidator(_named),
]
"""The section `learner.objective`."""

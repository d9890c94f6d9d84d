"""The learner's section of the configuration. Never imports torch: `sieve config` reads it in milliseconds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.settings import Section, Shared
from learner.objective.settings import AlphaDpgSettings, AnyObjective
from learner.train.partition import PartitionSettings


class OptimizerSettings(Section):
    """AdamW, a linear warm-up to a constant rate, and clipping by the global norm."""

    lr: Annotated[float, Field(ge=0, le=1)] = 2e-6
    """0 trains nothing: a run whose sampler–learner mismatch must stay flat."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Applied to matrices only; norms and biases are never decayed."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly from lr / warmup_steps to lr."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global L2 norm of the gradient."""

    def lr_at(self, step: int) -> float:
        """The rate of optimiser step `step`, counted from 1."""
        return self.lr * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.lr


class LearnerSettings(Section):
    """How the policy is trained, in what precision and pieces, and what is kept on disk."""

    objective: AnyObjective = AlphaDpgSettings()
    partition: PartitionSettings = PartitionSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is one. Chooses the collectives too: NCCL on CUDA, gloo on a CPU."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads for tensor operations; 0 leaves PyTorch's own choice."""
    micro_batch_tokens: Annotated[int, Field(ge=16, le=1 << 24)] = 8192
    """Padded tokens computed at once on one rank; the longest prompt with its longest answer must fit."""
    row_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 256
    """Completions of one group share a row, and the computation of their prompt, up to this many tokens; beyond it (or
    at 0) each has its own, with plain causal attention. Sharing pays for short answers: attention is quadratic."""
    recompute: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    reshard_after_forward: bool = True
    """Free gathered parameters between forward and backward: less memory, one more gather."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Committed checkpoints kept on disk, and so the steps that `sieve resume --from` can go back to, beside the base
    model. With 1, a damaged checkpoint costs the whole training."""
    keep_versions: Annotated[int, Field(ge=1)] = 4
    """Newest published versions kept on disk; those an evaluation still samples from are kept besides."""
    refusals_in_a_row: Annotated[int, Field(ge=1)] = 3
    """Consecutive steps refused for non-finite numbers before the learner ends with an error."""
    mismatch_nats: Annotated[float, Field(gt=0)] | None = None
    """Largest mean |log π_θ − log μ| per token, in nats, between learner and sampler of the same version, before
    training stops. None: what rounding explains in the coarser precision of the two, `learner.weights.canary.BOUNDS`.
    """
    collective_seconds: Annotated[float, Field(ge=10, le=86400)] = 600.0
    """A rank that does not answer a collective for this long is lost: all ranks end and resume from the checkpoint."""


class LearnerConfig(Shared):
    """The sections the learner reads."""

    learner: LearnerSettings = LearnerSettings()

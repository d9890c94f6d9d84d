"""One optimiser step of asynchronous α-DPG (Kruszewski et al., arXiv 2512.05962, made off-policy).

    loss = −(1/N) Σ_i Σ_t coefficient_{i,t} · log π_θ(y_{i,t} | y_{i,<t}) / L_norm

N counts the completions of all ranks, L_norm is a constant (longest answer), so that no answer counts more for being
short. `Trainer.step` is the method, line by line. Groups are fetched and weights published elsewhere.
A step whose loss or gradient is not finite is refused: weights and optimiser stay as they were, and the report names
the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from learner.batch.packing import Layout, lay_out, plan, same_count
from learner.batch.samples import Samples, table, tensor
from learner.model.lora import Unadapted
from learner.model.model import Scorer, score
from learner.objective.protocol import Context
from learner.objective.registry import ConfiguredObjective
from learner.objective.sequences import Sequences, quantities
from learner.ranks import Ranks
from learner.settings import LearnerSettings
from learner.train.partition import PartitionFunction, importance_weights


@dataclass
class Report:
    """The outcome of one rank's part of a step."""

    sequences: list[Sequences]
    """Of each micro-batch of this rank."""
    completions: int
    """N of all ranks."""
    loss: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0
    refused: str = ""
    """Why the step was not applied, the same on all ranks; empty when it was."""
    seconds: dict[str, float] = field(default_factory=dict)


def make_optimizer(policy: Scorer, settings: LearnerSettings) -> torch.optim.AdamW:
    """AdamW over the sharded parameters, one fused kernel for all of them; only matrices decay."""
    chosen = settings.optimizer
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": chosen.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=True
    )


class Trainer:
    """The policy, the frozen base (a model of its own, or the policy without its adapters), Ẑ and the objective, with
    the step that trains the first."""

    def __init__(
        self,
        settings: LearnerSettings,
        ranks: Ranks,
        policy: Scorer,
        base: Scorer | Unadapted,
        objective: ConfiguredObjective,
        partition: PartitionFunction,
        *,
        loss_scale: float = 1.0,
    ) -> None:
        self.settings, self.ranks = settings, ranks
        self.policy, self.base = policy, base
        self.objective, self.partition = objective, partition
        self.optimizer = make_optimizer(policy, settings)
        self.loss_scale = loss_scale

    def step(
        self, samples: Samples, *, step: int, progress: float, scored: Callable[[], None] = lambda: None
    ) -> Report:
        """Train on `samples`, this rank's part of the step's groups. Collective.

        `step` counts from 1, `progress` is step / steps. `scored` is called as soon as `samples` have all their base
        scores.
        """
        clock = _Clock()
        layouts, whole = self.layouts(samples)
        self.score_base(samples, layouts)
        scored()
        clock.lap("base")

        log_z = self.pooled_log_z(samples)
        counts = self.ranks.sums([len(samples), len(set(samples.group.tolist())), samples.mixed_groups])
        total = int(counts[0])
        context = replace(self.objective.context, progress=progress, mixed_share=counts[2] / max(counts[1], 1))
        report = Report([], total, lr=self.settings.optimizer.lr_at(step))

        def sequences(layout: Layout, policy: Tensor) -> Sequences:
            computed = {"policy": policy.detach(), "mask": layout.mask}
            of_samples: dict[str, Any] = {"log_z": log_z}
            recorded = quantities().keys() - computed.keys() - of_samples.keys()
            of_samples |= {name: getattr(samples, name) for name in recorded}
            return Sequences(**computed, **{name: tensor(layout, values) for name, values in of_samples.items()})

        # Coefficients need the whole group. A group larger than a micro-batch is scored first, without gradient.
        known = None if whole else self.coefficients_first(samples, layouts, sequences, context)
        total_loss = torch.zeros((), device=self.ranks.device)
        for index, layout in enumerate(layouts):
            policy = score(self.policy, layout)
            finite = known != [] and self.finite(samples, layout, policy)
            if not finite or not len(layout.samples):
                report.refused = report.refused or ("" if finite else "non-finite log-probability")
                # Nothing to learn here, but the collectives of the other ranks need this rank's.
                torch.autograd.backward((policy * 0).sum())
                continue
            batch = sequences(layout, policy)
            values = known[index] if known else self.objective.values(batch, context)
            loss = -(values * policy * layout.mask).sum() / (max(total, 1) * context.length_norm)
            # Sharding averages gradients over ranks, and N is global already; the scale keeps float16 from underflow.
            torch.autograd.backward(loss * (self.ranks.world * self.loss_scale))
            total_loss += loss.detach()
            report.sequences.append(batch)

        report.loss = float(total_loss)
        self.apply(report)
        clock.lap("backward")
        report.seconds = clock.laps
        return report

    def layouts(self, samples: Samples) -> tuple[list[Layout], bool]:
        """The rank's micro-batches, as many as every other rank's, and whether all groups of all ranks are whole."""
        packed = plan(samples.shapes, self.settings.micro_batch_tokens, self.settings.row_tokens)
        plans = self.ranks.gather((len(packed.micro_batches), packed.whole))
        batches = same_count(packed.micro_batches, max(count for count, _ in plans))
        tensors = [lay_out(rows, samples.prompts, samples.completions, samples.first) for rows in batches]
        return [layout.to(self.ranks.device) for layout in tensors], all(whole for _, whole in plans)

    @torch.no_grad()
    def score_base(self, samples: Samples, layouts: list[Layout]) -> None:
        """Fill `samples.base`: log π_b of every token not scored before. Skipped when no rank has one to score."""
        missing = sum(base is None for base in samples.base)
        if not self.ranks.sums([missing])[0]:
            return
        for layout in layouts:
            scores = score(self.base, layout).cpu().numpy()
            for row, sample in enumerate(layout.samples.tolist()):
                if samples.base[sample] is None:
                    samples.base[sample] = scores[row, : len(samples.sampler[sample])].copy()

    def pooled_log_z(self, samples: Samples) -> NDArray[np.float32]:
        """log Ẑ without the sample itself, from all earlier visits and the whole step's samples of the prompt; (N,)."""
        log_base = np.array([values.sum(dtype=np.float64) for values in samples.base if values is not None])
        log_sampler = np.array([values.sum(dtype=np.float64) for values in samples.sampler])
        finite = np.isfinite(log_base)
        weights = importance_weights(
            np.where(finite, log_base, 0.0),
            np.where(finite, log_sampler, 0.0),
            samples.passed & finite,
            self.partition.settings.largest_weight,
        )
        parts = self.ranks.gather((samples.prompt, weights))
        prompts, all_weights = (np.concatenate(column) for column in zip(*parts, strict=True))
        log_z = self.partition.log_z(prompts, all_weights)
        self.partition.observe(prompts, all_weights)
        start = sum(len(part) for part, _ in parts[: self.ranks.rank])
        return log_z[start : start + len(samples)]

    @torch.no_grad()
    def coefficients_first(
        self,
        samples: Samples,
        layouts: list[Layout],
        sequences: Callable[[Layout, Tensor], Sequences],
        context: Context,
    ) -> list[Tensor]:
        """Coefficients of each micro-batch when groups are split over several; [] when a log-prob is not finite."""
        scores = [score(self.policy, layout) for layout in layouts]
        if not all(self.finite(samples, layout, policy) for layout, policy in zip(layouts, scores, strict=True)):
            return []
        parts = [sequences(layout, policy) for layout, policy in zip(layouts, scores, strict=True)]
        values = self.objective.values(Sequences.joined(parts), context)
        tables = torch.split(values, [len(part) for part in parts])
        return [
            value if value.shape[1] == 1 else value[:, : part.mask.shape[1]]
            for value, part in zip(tables, parts, strict=True)
        ]

    @staticmethod
    def finite(samples: Samples, layout: Layout, policy: Tensor) -> bool:
        """Whether both models gave finite log-probs for the layout's completions."""
        return bool((torch.isfinite(policy) & torch.isfinite(table(layout, samples.base))).all())

    def apply(self, report: Report) -> None:
        """Clip and take the AdamW step, or refuse it on every rank alike."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.loss_scale != 1.0:
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        report.grad_norm = float(norm)
        trouble = [reason for reason in self.ranks.gather(report.refused) if reason]
        report.loss = self.ranks.sums([report.loss])[0]
        if not report.completions:
            trouble.append("no completions")
        elif not np.isfinite(report.loss):
            trouble.append("non-finite loss")
        elif not np.isfinite(report.grad_norm):
            trouble.append(f"non-finite gradient ({self._first_non_finite()})")
        report.refused = trouble[0] if trouble else ""
        if not report.refused:
            clip = self.settings.optimizer.clip
            torch.nn.utils.clip_grads_with_norm_(self.policy.parameters(), clip, norm, foreach=True)
            for group in self.optimizer.param_groups:
                group["lr"] = report.lr
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _first_non_finite(self) -> str:
        """The first parameter with a gradient that is not finite on this rank, for the message."""
        for name, parameter in self.policy.causal_lm.named_parameters():
            gradient = parameter.grad
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            if local is not None and not bool(torch.isfinite(local).all()):
                return name
        return "another rank's parameters"


class _Clock:
    """Seconds by part of the step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

"""The learner's optimiser step (learner/train/step.py, FSDP2, one rank) against a bare torch loop on the same batch.

The batch is the demo's: 64 groups of 8 completions of the demo's base model, with its micro-batches. Ours is
`Trainer.step` from groups as the broker gives them: laying out, base scores, pooled leave-one-out Z, staleness,
coefficients from the current policy, finiteness checks, sharded backward, clipping, AdamW. Two comparisons:

    base scores there   both sides find log π_b in the group (every visit but the first): forward, backward, clip, AdamW
    base scored too     both sides also score the frozen base first (a group's first visit)

Bare is a loop over the same tensors (same rows, same micro-batches, made beforehand) with the plain transformers
model: no sharding, no checks, coefficients given beforehand, log-probs, loss, backward, clip_grad_norm_, fused AdamW.
It is also timed on one row for each completion, as most training loops lay them out; that line is for information.

Times are CPU seconds of this process: both sides compute in it and wait for nothing, so that on an idle machine these
are seconds, and on a busy one the neighbours are left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from benchmarks.measure import Row, alternate, row
from broker.queue.state import Group, Member
from broker.queue.wire import Completion, Verdict, float32, int32
from broker.settings import DataSettings, ModelSettings, RunSettings, SamplingSettings
from learner.batch.packing import Layout, lay_out, plan
from learner.batch.samples import Floats, Samples
from learner.model.model import load
from learner.ranks import Ranks
from learner.settings import LearnerConfig, LearnerSettings, OptimizerSettings
from learner.start import build_trainer

GROUPS, GROUP, NEW_TOKENS, PROMPT = 64, 8, 14, 12
END = 1
ROOT = Path(__file__).resolve().parents[1]


def measure(rounds: int) -> list[Row]:
    """CPU seconds of one step, ours and bare; see the module's docstring for the three lines."""
    torch.set_num_threads(1)
    disable_progress_bar()
    path = ROOT / "examples" / "countdown" / "base"
    settings = LearnerSettings(device="cpu", threads=1, optimizer=OptimizerSettings(lr=3e-4))
    with tempfile.TemporaryDirectory() as directory:
        config = LearnerConfig(
            run=RunSettings(directory=Path(directory)), model=ModelSettings(path=path),
            data=DataSettings(train=ROOT / "examples" / "countdown" / "train.jsonl"),
            sampling=SamplingSettings(group_size=GROUP, max_new_tokens=NEW_TOKENS), learner=settings,
        )  # fmt: skip
        ranks = Ranks("cpu", 60.0)
        try:
            samples = _samples()
            trainer = build_trainer(config, ranks)
            layouts, _ = trainer.layouts(samples)
            trainer.score_base(samples, layouts)
            scored = list(samples.base)
            steps = iter(range(1, 1 << 30))

            def ours(base: Sequence[Floats | None]) -> float:
                batch = replace(samples, base=list(base))
                start = time.process_time()
                report = trainer.step(batch, step=next(steps), progress=0.5)
                seconds = time.process_time() - start
                if report.refused or len(report.sequences) != len(layouts):
                    raise RuntimeError(f"not the step that was meant: {report.refused!r}")
                return seconds

            separate = _separate(samples, settings)
            shared, rows = _Bare(path, layouts, settings), _Bare(path, separate, settings)
            seen = alternate(
                {
                    "ours": lambda: ours(scored), "bare": shared.step, "ours+base": lambda: ours([None] * len(samples)),
                    "bare+base": shared.step_with_base, "rows": rows.step,
                },
                rounds,
            )  # fmt: skip
        finally:
            ranks.close()
    return [
        row("learner step, base scores there", seen["ours"], seen["bare"], "CPU s", "≤ 1.15"),
        row("learner step, base scored too", seen["ours+base"], seen["bare+base"], "CPU s", "≤ 1.15"),
        row("learner step, bare with a row each", seen["ours"], seen["rows"], "CPU s", ""),
    ]


def _samples() -> Samples:
    """Random completions with the demo's lengths; which tokens they are changes nothing about the time."""
    draw = np.random.default_rng(0)
    groups, prompts = [], []
    for number in range(GROUPS):
        members = []
        for idx in range(GROUP):
            ids = draw.integers(2, 72, int(draw.integers(6, NEW_TOKENS + 1)))
            ids[-1] = END
            completion = Completion(
                group_id=f"0:{number}", lane="train", prompt=number, idx=idx, n=GROUP, tokens=int32(ids),
                logprobs=float32(np.full(len(ids), -np.log(70))), spans=((0, 0, len(ids)),), finish="stop", text="",
            )  # fmt: skip
            passed = bool(draw.integers(0, 4) == 0)
            verdict = Verdict(
                outcome="pass" if passed else "fail", reason="correct" if passed else "wrong_value", seconds=0.0,
                verifier="arithmetic/1",
            )  # fmt: skip
            members.append(Member(completion, verdict, None))
        groups.append(Group(f"0:{number}", number, GROUP, 0, 0, 0, 0.0, members))
        prompts.append(draw.integers(2, 72, PROMPT).astype(np.int32))
    return Samples.of(groups, prompts, range(GROUPS))


def _separate(samples: Samples, settings: LearnerSettings) -> list[Layout]:
    """The batch with a row for each completion, packed into the same budget."""
    packed = plan(samples.shapes, settings.micro_batch_tokens, 0)
    return [lay_out(rows, samples.prompts, samples.completions, samples.first) for rows in packed.micro_batches]


class _Bare:
    """What one would write without this project."""

    def __init__(self, path: Path, layouts: Sequence[Layout], settings: LearnerSettings) -> None:
        self.policy, self.base = load(path, torch.float32), load(path, torch.float32).requires_grad_(False)
        self.layouts = layouts
        draw = torch.Generator().manual_seed(0)
        self.coefficients = [torch.randn(layout.mask.shape, generator=draw) for layout in layouts]
        self.total = sum(len(layout.samples) for layout in layouts)
        chosen = settings.optimizer
        self.clip = chosen.clip
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, weight_decay=0.0, fused=True
        )

    @staticmethod
    def log_probs(model: nn.Module, layout: Layout) -> Tensor:
        hidden = model.model(  # type: ignore[operator]
            input_ids=layout.tokens, position_ids=layout.positions, attention_mask=layout.attend, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[layout.at])  # type: ignore[operator]
        return layout.table(logits.log_softmax(-1).gather(-1, layout.targets[:, None]).squeeze(-1))

    def step(self) -> float:
        """CPU seconds of one step with given coefficients."""
        start = time.process_time()
        for layout, values in zip(self.layouts, self.coefficients, strict=True):
            loss = -(values * self.log_probs(self.policy, layout) * layout.mask).sum() / (self.total * NEW_TOKENS)
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - start

    def step_with_base(self) -> float:
        """CPU seconds of one step that scores the frozen base before."""
        start = time.process_time()
        with torch.no_grad():
            for layout in self.layouts:
                self.log_probs(self.base, layout).numpy()
        return time.process_time() - start + self.step()

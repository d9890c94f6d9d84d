"""What the objective's tests share: small exact problems, stale behaviour policies, and sampling from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import TypeAdapter
from torch import Tensor

from learner.objective.exact import ExactProblem, OutputSpace
from learner.objective.registry import ConfiguredObjective, build
from learner.objective.sequences import Sequences
from learner.objective.settings import OBJECTIVES, AnyObjective, ObjectiveSettings

torch.set_num_threads(1)

ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)


@dataclass(frozen=True)
class Case:
    """A problem, a policy being trained, and the sampler of each of three members of a group."""

    problem: ExactProblem
    policy: Tensor
    samplers: tuple[Tensor, ...]

    @property
    def space(self) -> OutputSpace:
        return self.problem.space


def case(kind: str, *, seed: int = 0, drift: float = 0.6) -> Case:
    """`on_policy`, or `stale`: three versions, and the second member's weights changed after its first token."""
    random = torch.Generator().manual_seed(seed)
    space = OutputSpace(3, 3)

    def logits(around: Tensor | float, scale: float) -> Tensor:
        return around + scale * torch.randn(space.prefixes, 3, generator=random, dtype=torch.float64)

    base = logits(0.0, 1.0)
    right = torch.rand(len(space), generator=random) < 0.4
    problem = ExactProblem(space, base, right)
    policy = logits(base, 0.7)
    first, second, third = (space.log_probs(logits(policy, drift)) for _ in range(3))
    if kind == "on_policy":
        return Case(problem, policy, (space.log_probs(policy),) * 3)
    changed = torch.cat([first[:, :1], second[:, 1:]], 1)
    return Case(problem, policy, (first, changed, third))


SETTINGS: TypeAdapter[ObjectiveSettings] = TypeAdapter(AnyObjective)


def objective(**settings: object) -> ConfiguredObjective:
    """The objective with these settings and L_norm = 3 (the longest output)."""
    return build(SETTINGS.validate_python(settings), length_norm=3)


def own(name: str, **settings: object) -> dict[str, object]:
    """The name, and of `settings` those that the objective of this name has."""
    return {"name": name} | {key: value for key, value in settings.items() if key in OBJECTIVES[name].model_fields}


def draw(given: Case, groups: int, *, seed: int = 1) -> tuple[Sequences, Tensor]:
    """`groups` groups, member i from sampler i; the sequences and the output each one is, (N,)."""
    random = torch.Generator().manual_seed(seed)
    members = [
        torch.multinomial(sampler.sum(1).exp(), groups, replacement=True, generator=random)
        for sampler in given.samplers
    ]
    outputs = torch.stack(members, 1).flatten()
    seat = torch.arange(len(members)).repeat(groups)
    sampler = torch.stack(list(given.samplers))[seat, outputs]
    group = torch.arange(groups).repeat_interleave(len(members))
    return given.problem.sequences(given.policy, sampler, outputs, group), outputs


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def cosine(found: Tensor, true: Tensor) -> float:
    return float(found @ true / (found.norm() * true.norm()))


def random_sequences(
    sizes: list[int], *, tokens: int = 5, scale: float = 1.0, seed: int = 0, passed: bool | None = None
) -> Sequences:
    """Groups of the given sizes with random log-probabilities whose ratios are of order `scale`."""
    random = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    policy = -torch.rand(count, tokens, generator=random)
    lengths = torch.randint(1, tokens + 1, (count, 1), generator=random)
    right = torch.rand(count, generator=random) < 0.5 if passed is None else torch.full((count,), passed)
    return Sequences(
        policy=policy,
        sampler=policy + scale * torch.randn(count, tokens, generator=random),
        base=policy + scale * torch.randn(count, tokens, generator=random),
        mask=torch.arange(tokens)[None, :] < lengths,
        passed=right,
        group=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64)),
        log_z=torch.log(torch.rand(count, generator=random).clamp(min=1e-3)),
        staleness=torch.randint(0, 100, (count,), generator=random),
    )

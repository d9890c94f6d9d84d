"""The oracle: a tiny autoregressive model whose whole output space is enumerated, so nothing about it is estimated.

Gives the exact target, Z, L_α, its gradient and the divergences, and the exact expectation of any objective's
gradient estimate over whole groups of stale samples. Everything in float64. Costs S^n for S outputs and groups of n:
a vocabulary of three and three tokens have 15 outputs, so 3,375 groups of three. Written from the definitions, not
from the estimators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from learner.objective.registry import ConfiguredObjective
from learner.objective.sequences import Sequences

END = 0
"""The token that ends an output before its last position."""


class OutputSpace:
    """Every output of at most `length` tokens over `vocabulary` tokens, of which token 0 ends it.

    A model is a table of logits, (prefixes, vocabulary) float64: one next-token distribution per prefix.
    """

    def __init__(self, vocabulary: int, length: int) -> None:
        if vocabulary < 2 or length < 1:
            raise ValueError(f"vocabulary {vocabulary} and length {length}; at least 2 and 1")
        number = {
            prefix: index
            for index, prefix in enumerate(
                prefix for size in range(length) for prefix in product(range(1, vocabulary), repeat=size)
            )
        }
        outputs = [(*prefix, END) for prefix in number]
        outputs += list(product(range(1, vocabulary), repeat=length))
        self.vocabulary, self.length, self.prefixes = vocabulary, length, len(number)
        self.tokens = torch.zeros(len(outputs), length, dtype=torch.int64)
        """(S, T) int64, 0 beyond the end."""
        self.mask = torch.zeros(len(outputs), length, dtype=torch.bool)
        self.prefix = torch.zeros(len(outputs), length, dtype=torch.int64)
        """Which prefix each token follows; (S, T) int64."""
        for row, output in enumerate(outputs):
            for position, token in enumerate(output):
                self.tokens[row, position] = token
                self.mask[row, position] = True
                self.prefix[row, position] = number[output[:position]]

    def __len__(self) -> int:
        return len(self.tokens)

    def log_probs(self, logits: Tensor) -> Tensor:
        """log π(y_t | y_<t) of every output, 0 beyond its end; (S, T), differentiable in `logits`."""
        found = torch.log_softmax(logits, -1)[self.prefix, self.tokens]
        return torch.where(self.mask, found, 0.0)

    def scores(self, logits: Tensor) -> Tensor:
        """∇ log π(y_t | y_<t) with respect to the logits; (S, T, prefixes·vocabulary)."""
        rows, steps = len(self), self.length
        table = torch.zeros(rows, steps, self.prefixes, self.vocabulary, dtype=torch.float64)
        row, step = self.mask.nonzero().T
        table[row, step, self.prefix[row, step]] = -torch.softmax(logits, -1)[self.prefix[row, step]]
        table[row, step, self.prefix[row, step], self.tokens[row, step]] += 1
        return table.flatten(2)


class ExactProblem:
    """One prompt: an output space, a base model and which outputs are right."""

    def __init__(self, space: OutputSpace, base: Tensor, right: Tensor) -> None:
        """`base`: logits (prefixes, vocabulary) float64; `right`: (S,) bool with at least one right output."""
        if right.shape != (len(space),) or not bool(right.any()):
            raise ValueError(f"right has shape {tuple(right.shape)}; ({len(space)},) bool with a right output expected")
        self.space, self.base, self.right = space, base, right
        self.log_base = space.log_probs(base).sum(1)
        self.z = float(self.log_base.exp()[right].sum())
        """Z = P_{y~π_b}(v = 1)."""
        self.target = torch.where(right, self.log_base.exp() / self.z, 0.0)
        """p(y); (S,) float64."""

    def expected_reward(self, policy: Tensor, alpha: float) -> Tensor:
        """E_π[r] = Σ_y p^{1−α} π^α over right outputs; at α = 1, P_π(v = 1). Scalar, differentiable in `policy`."""
        log_policy = self.space.log_probs(policy).sum(1)[self.right]
        log_target = self.target[self.right].log()
        return ((1 - alpha) * log_target + alpha * log_policy).exp().sum()

    def loss(self, policy: Tensor, alpha: float) -> Tensor:
        """L_α = (1 − E_π[r]) / α; its limit KL(p‖π) at α = 0. Scalar, differentiable in `policy`."""
        if alpha == 0:
            log_policy = self.space.log_probs(policy).sum(1)[self.right]
            target = self.target[self.right]
            return (target * (target.log() - log_policy)).sum()
        return (1 - self.expected_reward(policy, alpha)) / alpha

    def gradient(self, policy: Tensor, alpha: float) -> Tensor:
        """∇L_α with respect to the policy's logits, by automatic differentiation; (prefixes·vocabulary,) float64."""
        return _gradient(lambda logits: self.loss(logits, alpha), policy)

    def pass_rate_gradient(self, policy: Tensor, k: int = 1, beta: float = 0.0) -> Tensor:
        """∇ of P(one of k samples is right) − β·KL(π‖π_b); (prefixes·vocabulary,) float64."""

        def value(logits: Tensor) -> Tensor:
            log_policy = self.space.log_probs(logits).sum(1)
            probability = log_policy.exp()
            solved = 1 - (1 - probability[self.right].sum()) ** k
            return solved - beta * (probability * (log_policy - self.log_base)).sum()

        return _gradient(value, policy)

    def divergences(self, policy: Tensor) -> dict[str, float]:
        """The quantities of diagnostics.divergences, exactly."""
        pi, p = self.space.log_probs(policy).sum(1).exp(), self.target
        middle = (p + pi) / 2
        shannon = torch.special.xlogy(p, p / middle) + torch.special.xlogy(pi, pi / middle)
        return {
            "forward_kl": float(self.loss(policy, 0.0)),
            "jensen_shannon": float(shannon.sum() / 2),
            "total_variation": float((p - pi).abs().sum() / 2),
            "mass_in_support": float(pi[self.right].sum()),
            "mass_excess": float((pi - p)[self.right].clamp(min=0).sum()),
            "mass_lacking": float((p - pi).clamp(min=0).sum()),
        }

    def sequences(self, policy: Tensor, sampler: Tensor, outputs: Tensor, group: Tensor) -> Sequences:
        """The samples as the learner would see them, with the exact Z.

        `sampler`: (N, T) the sampler's log-probabilities of each sample; `outputs`: (N,) rows of the output space.
        """
        space = self.space
        return Sequences(
            policy=space.log_probs(policy)[outputs].float(),
            sampler=sampler.float(),
            base=space.log_probs(self.base)[outputs].float(),
            mask=space.mask[outputs],
            passed=self.right[outputs],
            group=group,
            log_z=torch.full((len(outputs),), self.z, dtype=torch.float64).log().float(),
            staleness=torch.zeros(len(outputs), dtype=torch.int64),
        )

    def expected_gradient(self, objective: ConfiguredObjective, policy: Tensor, samplers: Sequence[Tensor]) -> Tensor:
        """E[(1/n) Σ_i Σ_t coefficient_{i,t} ∇log π(y_{i,t})] over all groups; (prefixes·vocabulary,) float64.

        `samplers`: for each of the n members, the (S, T) log-probabilities of the policy that samples it: one
        model's, or rows of `log_probs` of several, position by position, for a sample whose weights changed
        half-way. This is the direction of ascent: minus the loss's gradient.
        """
        n, size = len(samplers), len(self.space)
        members = torch.cartesian_prod(*[torch.arange(size)] * n).reshape(-1, n)
        stacked = torch.stack(list(samplers))
        probability = torch.stack([stacked[i].sum(1).exp()[members[:, i]] for i in range(n)]).prod(0)
        outputs = members.flatten()
        seat = torch.arange(n).repeat(len(members))
        group = torch.arange(len(members)).repeat_interleave(n)
        values = objective(self.sequences(policy, stacked[seat, outputs], outputs, group)).values.double()
        scores = self.space.scores(policy)
        # One (S, T) table of expected coefficients; then the scores enter once per output instead of once per sample.
        table = torch.zeros(size, self.space.length, dtype=torch.float64)
        table.index_add_(0, outputs, values.expand(-1, self.space.length) * probability[group][:, None] / n)
        return torch.einsum("st,std->d", table, scores)


def _gradient(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    logits = at.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(value(logits), logits)
    return found.flatten()

"""The error that stops a run whose sampler and learner hold different weights, and the search for the wrong tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from broker.errors import EX_MISMATCH, SieveError, WeightsError
from broker.queue.state import VersionName
from broker.settings import ModelSettings
from broker.weights.canary import difference
from broker.weights.store import VersionStore
from learner.batch.samples import Ids
from learner.model.model import Scorer
from learner.ranks import Ranks
from learner.weights.sequences import score_sequences
from learner.weights.tensor_groups import Files, assign, best, kind_of, parameters_of, suspects, unlike

SHOWN_TENSORS = 3


class WeightsDisagree(SieveError):
    """A sampler's log-probs are not those of the version it reports."""

    exit_code = EX_MISMATCH


@dataclass(frozen=True)
class Mismatch:
    """Sequences on which a sampler and the learner differ beyond the bound."""

    version: int
    who: str
    """The actor and its engine, or the actors whose samples these are."""
    decoding: bool
    """True when it was found in recorded samples, False on the canary."""
    mean: float
    bound: float
    precision: str
    sequences: list[tuple[Ids, Ids]]
    """(prompt ids, answer ids)"""
    logprobs: list[bytes]
    """The sampler's, float32 little-endian, of each answer."""
    agreed: bool = False
    """Whether the same actors had scored this version's canary within the bound."""


def explain(
    found: Mismatch,
    policy: Scorer,
    store: VersionStore,
    ranks: Ranks,
    model: ModelSettings,
    *,
    named: Mapping[int, VersionName],
    current: bool,
    committed: int,
) -> NoReturn:
    """Raise WeightsDisagree for `found`, naming the tensors that are wrong. Collective; overwrites `policy`.

    Args:
        named: the published versions, by number.
        current: whether `policy` still holds the weights of the newest version, so that it can be compared with the
            published files.
        committed: the step up to which the run is committed, for the message.
    """
    where = "what it sampled" if found.decoding else "its canary"
    head = (
        f"version {found.version}: {found.who} and the learner differ by {found.mean:.3g} nats per token on "
        f"{where}; the limit for {found.precision} is {found.bound:g} (learner.mismatch_nats)"
    )
    reason = _reason(found, policy, store, ranks, model, named, current)
    raise WeightsDisagree(
        f"{head}. {reason}. The run is committed up to step {committed}: end this actor (a new one loads all "
        f"weights again), or run without its engine, then go on with `sieve run CONFIG --resume`"
    )


def _files(store: VersionStore, version: VersionName, ranks: Ranks) -> Files | str:
    """The verified files of `version`; the error message when any rank cannot read them. Collective."""
    directory, error = None, ""
    try:
        directory = store.fetch(version).directory
    except WeightsError as failure:
        error = str(failure)
    errors = [one for one in ranks.gather(error) if one]
    return errors[0] if errors or directory is None else Files(directory)


def _reason(
    found: Mismatch,
    policy: Scorer,
    store: VersionStore,
    ranks: Ranks,
    model: ModelSettings,
    named: Mapping[int, VersionName],
    current: bool,
) -> str:
    dtype = getattr(torch, model.dtype)
    if not np.isfinite(found.mean):
        return "Its log-probs are not finite: look for an overflow in its precision, or a load that failed"
    stored = set(ranks.tell(store.versions()))
    there = {number: name for number, name in sorted(named.items()) if name in stored}
    if found.version not in there:
        return "Its files are deleted already, so no tensor group can be named: raise learner.keep_versions"
    files = _files(store, there[found.version], ranks)
    if isinstance(files, str):
        return f"Its files cannot be read, so no tensor group can be named: {files}"
    if current and found.version == max(there):
        wrong = unlike(policy, files, dtype)
        if wrong:
            return f"The published files are not what the learner holds: look at {_kinds(wrong)}, {_few(wrong)}"
    for name, parameter in parameters_of(policy).items():
        if name in files:
            assign(parameter, files[name])

    def gap() -> float:
        return difference(score_sequences(policy, found.sequences, ranks), found.logprobs)[0]

    plain = gap()
    if found.agreed:
        return (
            "On this version's canary they agreed, so the weights are right: look at decoding (a KV or prefix "
            "cache kept over an update, log-probs reported after a temperature or mask)"
        )
    if plain <= found.bound:
        return "The published files give the sampler's log-probs: the learner scored with something else"
    sources: dict[str, Files] = {}
    if found.version > min(there):
        before = max(version for version in there if version < found.version)
        former = _files(store, there[before], ranks)
        if isinstance(former, Files):
            sources[f"version {before}"] = former
    sources["the base model"] = Files(model.path)
    tried = list(suspects(policy, files, sources, gap, dtype))
    culprit = best(tried, max(found.bound, plain / 10))
    if culprit is None:
        closest = min(tried, key=lambda suspect: suspect.gap, default=None)
        hint = f" (closest: {closest.group} of {closest.source}, {closest.gap:.3g} left)" if closest else ""
        return (
            f"No group of tensors left over from earlier weights explains it{hint}: look at the engine's precision, "
            f"quantisation and attention settings, and for a load that ended half-way"
        )
    return (
        f"Look at the tensor group {culprit.group}: with it still that of {culprit.source} the learner computes "
        f"the sampler's log-probs ({culprit.gap:.3g} left), so the update did not reach it: {_few(culprit.tensors)}"
    )


def _kinds(names: Sequence[str]) -> str:
    return ", ".join(sorted({kind_of(name) for name in names}))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
    return ", ".join(names[:SHOWN_TENSORS]) + more

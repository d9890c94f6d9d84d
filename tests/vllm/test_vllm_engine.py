"""The vLLM engine against plain forward passes and its protocol's invariants."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from prometheus_client import REGISTRY

from actor.engine import ArgumentRefused, ModelUnusable, PromptTooLong, TokenUnknown, WrongVersion
from tests.actor.tiny_llama import prompt, ragged, reference, ticket
from tests.vllm.served_llama import EOS, LONGEST, MAX_NEW, VOCABULARY, drain

TOLERANCE = 1e-4  # float32, per token


def questions(count, seed=0):
    return ragged(count, seed, VOCABULARY)


def test_log_probs_equal_a_plain_forward_pass_for_ragged_prompts(sampler, versions):
    models, directories = versions
    sampler.load(1, directories[0])
    prompts = questions(7)
    for question in prompts:
        sampler.submit(ticket(question.index, n=5, version=1), question)
    done = drain(sampler)
    assert sorted((one.group_id, one.idx) for one in done) == sorted(
        (f"0:{p.index}", i) for p in prompts for i in range(5)
    )
    for one in done:
        np.testing.assert_allclose(
            one.sampler_logprobs, reference(models[0], prompts[one.prompt], one.ids), atol=TOLERANCE
        )
        assert one.spans == ((1, 0, len(one.ids)),)


def test_sampling_follows_the_models_distribution_whatever_the_models_own_defaults(sampler, versions, monkeypatch):
    """Chi-square of 3,000 first tokens against the model's softmax; fixed seeds, bound at the 99.9 % quantile.

    generation_config.json at model.path says top_k 1 and temperature .1."""
    models, directories = versions
    sampler.load(0, directories[0])
    question = prompt([9, 30, 4])
    monkeypatch.setattr(sampler, "_limit", 1)  # the first token is all that is looked at
    for index in range(3):
        sampler.submit(ticket(index, n=1000), question)
    count, seen = 3000, Counter()
    while sampler.in_flight:
        seen.update(int(one.ids[0]) for one in sampler.poll(0.05))
    with torch.inference_mode():
        logits = models[0](input_ids=torch.tensor([[9, 30, 4]])).logits[0, -1]
    expected = torch.softmax(logits.double(), -1).numpy() * count
    observed = np.array([seen[token] for token in range(VOCABULARY)], dtype=float)
    rare = expected < 5
    expected, observed = (np.append(part[~rare], part[rare].sum()) for part in (expected, observed))
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Wilson–Hilferty quantile at z = 3.09 (one-sided .001).
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert freedom > 15 and statistic < bound


def test_a_completion_is_the_same_alone_in_a_crowd_and_on_another_attempt(sampler, versions):
    _, directories = versions
    sampler.load(0, directories[0])
    question = prompt([8, 3, 11, 5])

    def answers(missing, others, attempt=1):
        for other in questions(others, seed=2):
            sampler.submit(ticket(other.index + 1, n=3), other)
        sampler.submit(ticket(0, n=8, missing=missing).model_copy(update={"attempt": attempt}), question)
        return {one.idx: one for one in drain(sampler) if one.prompt == 0}

    together = answers(range(8), 0)
    crowded = answers(range(8), 5)
    alone = {idx: answers([idx], 0, attempt=2)[idx] for idx in (0, 5)}
    assert len({one.tokens for one in together.values()}) > 4
    for idx, other in [*crowded.items(), *alone.items()]:
        assert together[idx].tokens == other.tokens
        np.testing.assert_allclose(together[idx].sampler_logprobs, other.sampler_logprobs, atol=TOLERANCE)


def test_the_end_token_is_kept_with_its_log_prob_and_a_completion_leaves_before_its_group(sampler, versions):
    _, directories = versions
    sampler.load(0, directories[0])
    before = sampler.tokens
    sampler.submit(ticket(0, n=60), prompt([7, 7]))
    first: list = []
    while not first:
        first = sampler.poll(0.001)
    assert sampler.in_flight == 60 - len(first) > 0
    assert 0 < sampler.running <= 16
    done = first + drain(sampler)
    assert len({one.idx for one in done}) == len(done) == 60
    assert {one.finish for one in done} >= {"stop"}
    for one in done:
        ids = one.ids.tolist()
        assert EOS not in ids[:-1] and len(ids) <= MAX_NEW
        assert one.finish == ("stop" if ids[-1] == EOS else "length")
        assert one.finish == "stop" or len(ids) == MAX_NEW
        assert one.text == " ".join("<unk>" if token < EOS else f"w{token}" for token in ids if token > EOS)
    assert sampler.tokens - before == sum(len(one.ids) for one in done)


def test_eval_tickets_are_sampled_with_exactly_their_version_and_train_ones_with_no_older(sampler, versions):
    _, directories = versions
    sampler.load(1, directories[1])
    for version in (0, 2):
        with pytest.raises(WrongVersion, match=f"needs version {version}, loaded is 1"):
            sampler.submit(ticket(0, version=version, lane="eval"), prompt([3]))
    with pytest.raises(WrongVersion, match="needs version 2, loaded is 1"):
        sampler.submit(ticket(0, version=2), prompt([3]))
    assert sampler.in_flight == 0
    sampler.submit(ticket(0, n=40, version=1, lane="eval"), prompt([3]))
    sampler.submit(ticket(5, n=2, version=1), prompt([3]))
    assert (sampler.pinned(2), sampler.pinned(0), sampler.oldest_version()) == (40, 42, 1)
    with pytest.raises(WrongVersion, match="may not be sampled with version 2"):
        sampler.load(2, directories[2])
    done = drain(sampler)
    assert len(done) == 42 and all(one.spans == ((1, 0, len(one.ids)),) for one in done)
    assert sampler.pinned(2) == 0 and sampler.oldest_version() is None
    sampler.load(2, directories[2])
    sampler.load(0, directories[0])  # an evaluation may want an older one


def test_cancelled_tickets_leave_and_the_others_are_untouched(sampler, versions):
    models, directories = versions
    sampler.load(0, directories[0])
    prompts = questions(4, seed=8)
    for question in prompts:
        sampler.submit(ticket(question.index, n=10), question)
    done = sampler.poll(0)
    before = sampler.in_flight
    gone = sampler.cancel(["0:0", "0:3"])
    assert gone > 0 and sampler.in_flight == before - gone
    done += drain(sampler)
    assert Counter(one.prompt for one in done if one.prompt in (1, 2)) == {1: 10, 2: 10}
    for one in done:
        np.testing.assert_allclose(
            one.sampler_logprobs, reference(models[0], prompts[one.prompt], one.ids), atol=TOLERANCE
        )
    assert sampler.poll(0.2) == []


def test_the_prompt_of_a_group_is_computed_once(sampler, versions):
    """Blocks hold 32 positions here: of 100 prompt tokens, 96 are shared by all but the first of a group."""
    models, directories = versions
    sampler.load(0, directories[0])

    def hits():
        return REGISTRY.get_sample_value("vllm:prefix_cache_hits_total", {"model_name": "policy", "engine": "0"})

    question = prompt(np.random.default_rng(5).integers(3, VOCABULARY, 100).tolist())
    before = hits()
    sampler.submit(ticket(0, n=8), question)
    done = drain(sampler)
    assert hits() - before == 7 * 96
    for one in done:
        np.testing.assert_allclose(one.sampler_logprobs, reference(models[0], question, one.ids), atol=TOLERANCE)


def test_scores_are_those_of_the_sampler_and_disturb_nothing_that_runs(sampler, versions):
    models, directories = versions
    sampler.load(0, directories[0])
    prompts = questions(6, seed=3)
    for question in prompts:
        sampler.submit(ticket(question.index, n=4), question)
    done = sampler.poll(0.05)
    rng = np.random.default_rng(0)
    sequences = [
        (rng.integers(3, VOCABULARY, before).astype(np.int32), rng.integers(3, VOCABULARY, after).astype(np.int32))
        for before, after in ((1, 1), (5, 9), (40, 3), (100, LONGEST - 100))
    ]
    tokens = sampler.tokens
    scores = sampler.score(sequences)
    for (before, after), found in zip(sequences, scores, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference(models[0], prompt(before.tolist()), after), atol=TOLERANCE)
    done += drain(sampler)
    assert len(done) == 24
    again = sampler.score([(np.frombuffer(prompts[one.prompt].tokens, "<i4"), one.ids) for one in done])
    for one, found in zip(done, again, strict=True):
        np.testing.assert_allclose(found, one.sampler_logprobs, atol=TOLERANCE)
    assert sampler.tokens >= tokens
    with pytest.raises(PromptTooLong, match="sequence 0 has 200 prompt and 57 answer tokens"):
        sampler.score([(np.full(200, 3, np.int32), np.full(57, 3, np.int32))])


@pytest.mark.parametrize("token", [VOCABULARY, -1, 1 << 20])
def test_ids_outside_the_vocabulary_are_refused_before_vllm_sees_them(sampler, versions, token):
    models, directories = versions
    sampler.load(0, directories[0])
    with pytest.raises(
        TokenUnknown, match=rf"prompt 1 has token id {token} at position 2, .* has ids 0 … 63; tokenise"
    ):
        sampler.submit(ticket(1), prompt([5, 6, token]))
    with pytest.raises(TokenUnknown, match=rf"sequence 0 has token id {token} at position 1"):
        sampler.score([(np.array([5], np.int32), np.array([token], np.int32))])
    sampler.submit(ticket(2, n=1), prompt([5, 6]))
    (one,) = drain(sampler)
    np.testing.assert_allclose(one.sampler_logprobs, reference(models[0], prompt([5, 6]), one.ids), atol=TOLERANCE)


def test_prompts_that_do_not_fit_are_refused(sampler, versions):
    _, directories = versions
    sampler.load(0, directories[0])
    sampler.submit(ticket(0, n=1), prompt([3] * (LONGEST - MAX_NEW)))
    with pytest.raises(PromptTooLong, match=r"has 129 tokens.*must have 1 … 128"):
        sampler.submit(ticket(1), prompt([3] * 129))
    with pytest.raises(PromptTooLong):
        sampler.submit(ticket(2), prompt([]))
    assert len(drain(sampler)) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unsafe_arguments": {"max_model_length": 9}}, ArgumentRefused, "not an engine.* did you mean max_model_len"),
        ({"eos": (VOCABULARY,)}, ModelUnusable, "end token 64 is outside the model's vocabulary of 64"),
        ({"device": "cuda:0"}, ModelUnusable, "the installed vLLM runs on cpu"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_before_anything_starts(open_vllm, model_path, options, error, message):
    with pytest.raises(error, match=message):
        open_vllm(model_path, **options)


def test_a_directory_without_a_model_is_named(open_vllm, tmp_path):
    with pytest.raises(ModelUnusable, match="not a Hugging Face model directory"):
        open_vllm(tmp_path)

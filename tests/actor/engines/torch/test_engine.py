"""The torch engine, compared with plain forward passes and exact enumeration, and the invariants of the protocol."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest
import torch

from actor.engine import ModelUnusable, PromptTooLong, TokenUnknown, WeightsUnusable, WrongVersion
from tests.actor.tiny_llama import EOS, drain, engine, llama, prompt, published, ragged, reference, ticket

TOLERANCE = 1e-4  # float32, per token


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def versions(tmp_path):
    """Three models and their published directories; the engine gets its own model."""
    models = [llama(seed) for seed in (1, 2, 3)]
    return models, [published(model, tmp_path / f"v{index}") for index, model in enumerate(models)]


@pytest.mark.parametrize("options", [{}, {"max_batch": 3}, {"pass_tokens": 1}, {"admit_share": 1.0}])
@pytest.mark.slow
def test_log_probs_equal_a_plain_forward_pass_for_ragged_prompts(versions, options):
    models, directories = versions
    sampler = engine(llama(0), **options)
    sampler.load(0, directories[0])
    prompts = ragged(7)
    for question in prompts:
        sampler.submit(ticket(question.index, n=5), question)
    done = drain(sampler)
    assert sorted((one.group_id, one.idx) for one in done) == sorted(
        (f"0:{p.index}", i) for p in prompts for i in range(5)
    )
    for one in done:
        np.testing.assert_allclose(
            one.sampler_logprobs, reference(models[0], prompts[one.prompt], one.ids), atol=TOLERANCE
        )
        assert one.spans == ((0, 0, len(one.ids)),)


@pytest.mark.parametrize("kind", [{"kv_heads": 4}, {"kv_heads": 1}, {"tied": True}])
def test_attention_shapes_and_tied_embeddings(tmp_path, kind):
    model, other = llama(1, **kind), llama(9, **kind)
    sampler = engine(other)
    sampler.load(0, published(model, tmp_path))
    question = prompt([5, 6, 7])
    sampler.submit(ticket(0, n=6), question)
    for one in drain(sampler):
        np.testing.assert_allclose(one.sampler_logprobs, reference(model, question, one.ids), atol=TOLERANCE)


@pytest.mark.parametrize("pass_tokens", [16, 8192])
@pytest.mark.slow
def test_weights_change_under_running_completions_and_the_spans_are_exact(versions, pass_tokens):
    models, directories = versions
    sampler = engine(llama(0), max_batch=8, pass_tokens=pass_tokens)
    sampler.load(0, directories[0])
    prompts = ragged(9, seed=4)
    for question in prompts:
        sampler.submit(ticket(question.index, n=4), question)
    done, version = [], 0
    for step in itertools.count():
        if not sampler.in_flight:
            break
        done += sampler.poll(0)  # one token for every row
        if step in (3, 8, 9, 15):
            version += 1
            sampler.load(version, directories[version % 3])
            assert sampler.version == version
    assert len(done) == 36 and version == 4
    assert sum(len(one.spans) > 1 for one in done) > 8
    for one in done:
        for used, start, end in one.spans:
            expected = reference(models[used % 3], prompts[one.prompt], one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)
        assert [span[0] for span in one.spans] == sorted({span[0] for span in one.spans})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"pass_tokens": 1}])
def test_scores_are_the_log_probs_that_sampling_reported_and_disturb_nothing(versions, options):
    models, directories = versions
    prompts = ragged(7)
    sampler, alone = (engine(llama(0), **options) for _ in range(2))
    for one in (sampler, alone):
        one.load(0, directories[0])
        for question in prompts:
            one.submit(ticket(question.index, n=3), question)
    undisturbed = drain(alone)
    asked = [(np.frombuffer(prompts[one.prompt].tokens, "<i4"), one.ids) for one in undisturbed]
    done = []
    while sampler.in_flight:
        done += sampler.poll(0)
        for one, scores in zip(undisturbed, sampler.score(asked), strict=True):
            np.testing.assert_allclose(scores, one.sampler_logprobs, atol=TOLERANCE)
            assert scores.dtype == np.float32
    key = lambda one: (one.group_id, one.idx)  # noqa: E731
    for mine, theirs in zip(sorted(done, key=key), sorted(undisturbed, key=key), strict=True):
        assert mine.tokens == theirs.tokens and mine.spans == theirs.spans
    sampler.load(1, directories[1])
    for one, scores in zip(undisturbed, sampler.score(asked), strict=True):
        np.testing.assert_allclose(scores, reference(models[1], prompts[one.prompt], one.ids), atol=TOLERANCE)


def test_scoring_needs_weights_and_sequences_that_fit(versions):
    _, directories = versions
    sampler = engine(llama(0))
    one, many = np.array([3], np.int32), np.arange(3, 23, dtype=np.int32).repeat(4)
    with pytest.raises(WrongVersion, match="load a version"):
        sampler.score([(one, one)])
    sampler.load(0, directories[0])
    assert sampler.score([]) == []
    for prompt_ids, answer in ((many, one), (one, one[:0]), (one[:0], one)):
        with pytest.raises(PromptTooLong, match="64 positions"):
            sampler.score([(one, one), (prompt_ids, answer)])


def test_a_load_returns_its_seconds_by_part(versions):
    _, directories = versions
    sampler = engine(llama(0))
    sampler.load(0, directories[0])
    for question in ragged(7):
        sampler.submit(ticket(question.index, n=3), question)
    sampler.poll(0)
    begin = time.perf_counter()
    seconds = sampler.load(1, directories[1])
    assert 0 < seconds["load"] < seconds["pause"] <= time.perf_counter() - begin
    assert set(seconds) == {"load", "pause"}


def test_two_loads_without_a_token_between_leave_no_empty_span(versions):
    models, directories = versions
    sampler = engine(llama(0))
    sampler.load(0, directories[0])
    question = prompt([4, 9, 3])
    sampler.submit(ticket(0, n=8), question)
    done = sampler.poll(0)
    assert sampler.oldest_version() == 0
    sampler.load(1, directories[1])
    sampler.load(2, directories[2])
    for one in done + drain(sampler):
        assert 1 not in {version for version, _, _ in one.spans}
        for used, start, end in one.spans:
            expected = reference(models[used], question, one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)


def test_weights_that_change_between_two_completions_of_a_group_also_apply_to_its_prompt(versions):
    models, directories = versions
    sampler = engine(llama(0), max_batch=1)
    sampler.load(0, directories[0])
    question = prompt([4, 9, 3, 12])
    sampler.submit(ticket(0, n=8), question)
    done = []
    while sampler.in_flight:
        done += sampler.poll(0)
        if not sampler.running:
            version = len(done) % 3
            sampler.load(len(done), directories[version])
    assert [one.spans for one in done] == [((index, 0, len(one.ids)),) for index, one in enumerate(done)]
    for index, one in enumerate(done):
        expected = reference(models[index % 3], question, one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)


@pytest.mark.slow
def test_sampling_follows_the_models_distribution_exactly(tmp_path):
    """Chi-square of 20,000 answers of ≤ 3 tokens against enumeration; fixed seed, bound at the 99.9 % quantile."""
    vocabulary, length, count = 5, 3, 20_000
    model = llama(6, vocabulary=vocabulary)
    model.lm_head.weight.data *= 0.4  # keep most of the 100 or so answers likely enough to count
    sampler = engine(llama(0, vocabulary=vocabulary), max_new_tokens=length, max_batch=512)
    sampler.load(0, published(model, tmp_path))
    question = prompt([3, 4, 1])
    for index in range(count // 1000):
        sampler.submit(ticket(index, n=1000), question)
    seen = Counter(tuple(one.ids.tolist()) for one in drain(sampler))
    assert seen.total() == count
    answers = [
        answer
        for size in range(1, length + 1)
        for answer in itertools.product(range(vocabulary), repeat=size)
        if EOS not in answer[:-1] and (size == length or answer[-1] == EOS)
    ]
    chance = np.array(
        [np.exp(reference(model, question, np.array(answer)).sum(dtype=np.float64)) for answer in answers]
    )
    assert abs(chance.sum() - 1) < 1e-5
    expected, observed = chance * count, np.array([seen[answer] for answer in answers])
    rare = expected < 5
    assert rare.sum() < len(answers)
    expected = np.append(expected[~rare], expected[rare].sum())
    observed = np.append(observed[~rare], observed[rare].sum())
    if expected[-1] < 5:
        expected, observed = expected[:-1], observed[:-1]
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Wilson–Hilferty quantile at z = 3.09 (one-sided .001).
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert freedom > 30
    assert statistic < bound


def test_a_completion_is_the_same_alone_in_its_group_and_on_another_attempt(versions):
    _, directories = versions
    question = prompt([8, 3, 11, 5])

    def answers(missing, others, attempt=1, **options):
        sampler = engine(llama(0), **options)
        sampler.load(0, directories[0])
        for other in ragged(others, seed=2):
            sampler.submit(ticket(other.index + 1, n=3), other)
        sampler.submit(ticket(0, n=8, missing=missing).model_copy(update={"attempt": attempt}), question)
        return {one.idx: one for one in drain(sampler) if one.prompt == 0}

    together = answers(range(8), 0)
    crowded = answers(range(8), 5, max_batch=4)
    alone = {idx: answers([idx], 0, attempt=2)[idx] for idx in range(8)}
    assert len({one.tokens for one in together.values()}) > 4
    for idx in range(8):
        for other in (crowded[idx], alone[idx]):
            assert together[idx].tokens == other.tokens
            np.testing.assert_allclose(together[idx].sampler_logprobs, other.sampler_logprobs, atol=TOLERANCE)


def test_the_end_token_is_kept_with_its_log_prob_and_the_rest_ends_by_length(versions):
    _, directories = versions
    sampler = engine(llama(0), max_new_tokens=6, max_batch=64)
    sampler.load(0, directories[0])
    sampler.submit(ticket(0, n=200), prompt([7, 7]))
    done = drain(sampler)
    assert {one.finish for one in done} == {"stop", "length"}
    for one in done:
        ids = one.ids.tolist()
        assert EOS not in ids[:-1]
        assert (ids[-1] == EOS) == (one.finish == "stop")
        assert len(ids) == 6 if one.finish == "length" else len(ids) <= 6
        assert one.text == " ".join(str(token) for token in ids if token != EOS)
    assert sampler.tokens == sum(len(one.ids) for one in done)


def test_a_completion_is_returned_while_the_others_of_its_group_continue(versions):
    _, directories = versions
    sampler = engine(llama(0), max_batch=64, max_new_tokens=30)
    sampler.load(0, directories[0])
    sampler.submit(ticket(0, n=64), prompt([7, 7]))
    first: list = []
    while not first:
        first = sampler.poll(0)
    assert 0 < sampler.in_flight == 64 - len(first)
    assert sampler.running == sampler.in_flight


def test_eval_tickets_are_sampled_with_exactly_their_version(versions):
    _, directories = versions
    sampler = engine(llama(0))
    with pytest.raises(WrongVersion, match="loaded is None"):
        sampler.submit(ticket(0), prompt([3]))
    sampler.load(1, directories[1])
    for version in (0, 2):
        with pytest.raises(WrongVersion, match=f"needs version {version}, loaded is 1"):
            sampler.submit(ticket(0, version=version, lane="eval"), prompt([3]))
    assert sampler.in_flight == 0
    sampler.submit(ticket(0, version=1, lane="eval"), prompt([3]))
    sampler.submit(ticket(5, version=0), prompt([3]))
    done = sampler.poll(0)
    assert 0 < sampler.pinned(2) <= 4
    with pytest.raises(WrongVersion, match="may not be sampled with version 2"):
        sampler.load(2, directories[2])
    done += drain(sampler)
    assert all(one.spans == ((1, 0, len(one.ids)),) for one in done) and len(done) == 8
    assert sampler.pinned(2) == 0
    sampler.load(2, directories[2])


def test_train_tickets_are_never_sampled_with_older_weights_than_they_were_issued_for(versions):
    _, directories = versions
    sampler = engine(llama(0))
    sampler.load(1, directories[1])
    with pytest.raises(WrongVersion, match="needs version 2, loaded is 1"):
        sampler.submit(ticket(0, version=2), prompt([3]))
    sampler.submit(ticket(0, version=1), prompt([3]))
    sampler.poll(0)
    with pytest.raises(WrongVersion):
        sampler.load(0, directories[0])
    sampler.load(2, directories[2])


def test_cancelled_tickets_are_dropped_and_the_others_are_unaffected(versions):
    models, directories = versions
    sampler = engine(llama(0), max_batch=10)
    sampler.load(0, directories[0])
    prompts = ragged(4, seed=8)
    for question in prompts:
        sampler.submit(ticket(question.index, n=5), question)
    done = sampler.poll(0)
    before = sampler.in_flight
    gone = sampler.cancel(["0:0", "0:3"])
    assert gone > 0 and sampler.in_flight == before - gone
    done += drain(sampler)
    assert Counter(one.prompt for one in done if one.prompt in (1, 2)) == {1: 5, 2: 5}
    for one in done:
        np.testing.assert_allclose(
            one.sampler_logprobs, reference(models[0], prompts[one.prompt], one.ids), atol=TOLERANCE
        )


def test_weights_that_do_not_fit_are_named_and_the_old_ones_stay(versions, tmp_path):
    models, directories = versions
    sampler = engine(llama(0))
    sampler.load(0, directories[0])
    other = published(llama(1, vocabulary=25), tmp_path / "shape")
    broken = llama(1)
    broken.model.norm.weight.data[3] = float("nan")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes((directories[1] / "model.safetensors").read_bytes()[:100])
    for directory, message in (
        (other, "embed_tokens.weight is .25, 32., the model at model.path has .24, 32."),
        (published(broken, tmp_path / "nan"), "model.norm.weight has values that are not finite"),
        (published(llama(1, kv_heads=1), tmp_path / "heads"), "k_proj.weight is"),
        (tmp_path / "empty", "not readable as safetensors"),
        (tmp_path / "torn", "not readable as safetensors"),
        (
            published(llama(1).to(torch.float64), tmp_path / "double"),
            "is float64; publish weights as float32, bfloat16",
        ),
        (published(llama(1).to(torch.float8_e4m3fn), tmp_path / "fp8"), "is float8_e4m3fn; publish weights as"),
    ):
        with pytest.raises(WeightsUnusable, match=message):
            sampler.load(1, directory)
    assert sampler.version == 0
    question = prompt([5, 6])
    sampler.submit(ticket(0), question)
    for one in drain(sampler):
        np.testing.assert_allclose(one.sampler_logprobs, reference(models[0], question, one.ids), atol=TOLERANCE)


def test_prompts_that_do_not_fit_the_model_are_refused(versions):
    _, directories = versions
    sampler = engine(llama(0), max_new_tokens=12)
    sampler.load(0, directories[0])
    sampler.submit(ticket(0, n=1), prompt([3] * 52))
    with pytest.raises(PromptTooLong, match=r"has 53 tokens.*must have 1 … 52"):
        sampler.submit(ticket(1), prompt([3] * 53))
    with pytest.raises(PromptTooLong):
        sampler.submit(ticket(2), prompt([]))
    for token in (24, -1):
        with pytest.raises(TokenUnknown, match=rf"prompt 3 has token id {token} at position 1, .* has ids 0 … 23"):
            sampler.submit(ticket(3), prompt([3, token]))
    assert len(drain(sampler)) == 1


def test_models_and_end_tokens_the_engine_cannot_serve_are_refused():
    with pytest.raises(ModelUnusable, match="end token 24 is outside the model's vocabulary of 24"):
        engine(llama(0), eos=[24])
    model = llama(0)
    model.config.sliding_window = 8
    with pytest.raises(ModelUnusable, match="full attention only"):
        engine(model)

"""New weights under running completions: which weights sampled which token, exactly; and what happens when it fails."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from safetensors.torch import save_file
from transformers import DynamicCache
from vllm.inputs.engine import tokens_input

from actor.engine import EngineError, WeightsUnusable
from actor.engines.vllm.patience import Patience
from tests.actor.tiny_llama import prompt, published, ragged, reference, ticket
from tests.vllm.served_llama import LONGEST, MAX_NEW, VOCABULARY, drain, save, served_llama

TOLERANCE = 1e-4  # float32, per token


def sample_across_updates(sampler, directories, prompts, n, first=0):
    """Completions of `prompts`, with a load between every two polls; version v is directories[v % 3]."""
    sampler.load(first, directories[first % 3])
    for question in prompts:
        sampler.submit(ticket(question.index, n=n, version=first), question)
    done, parts = [], []
    for version in itertools.count(first + 1):
        done += sampler.poll(0.1)
        if not sampler.in_flight:
            return done, parts
        parts.append(sampler.load(version, directories[version % 3]))
        assert sampler.version == version


def sound(done, prompts, n):
    """Everything once, and spans that partition each completion in rising versions."""
    assert Counter((one.group_id, one.idx) for one in done) == {
        (f"0:{p.index}", i): 1 for p in prompts for i in range(n)
    }
    for one in done:
        used = [version for version, _, _ in one.spans]
        assert used == sorted(set(used))


def truthful(done, prompts, models):
    """Every log-prob is that of the version its span names; version v is models[v % 3]."""
    for one in done:
        for used, start, end in one.spans:
            expected = reference(models[used % 3], prompts[one.prompt], one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)


def test_each_token_has_the_log_prob_of_the_version_its_span_names(sampler, versions):
    models, directories = versions
    prompts = ragged(20, seed=4, vocabulary=VOCABULARY)
    done, parts = sample_across_updates(sampler, directories, prompts, n=4)
    sound(done, prompts, 4)
    assert len(parts) >= 2 and sum(len(one.spans) > 1 for one in done) >= 8
    truthful(done, prompts, models)
    for part in parts:
        assert set(part) == {"pause", "load"}
        assert 0 < part["load"] < part["pause"]


def test_two_loads_without_a_token_between_leave_no_empty_span(sampler, versions):
    models, directories = versions
    sampler.load(0, directories[0])
    question = prompt([4, 9, 3])
    sampler.submit(ticket(0, n=16), question)
    done = sampler.poll(0.05)
    sampler.load(1, directories[1])
    sampler.load(2, directories[2])
    for one in done + drain(sampler):
        for used, start, end in one.spans:
            expected = reference(models[used], question, one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)


def test_a_prompt_that_was_cached_is_computed_again_with_the_new_weights(sampler, versions):
    models, directories = versions
    question = prompt(np.random.default_rng(6).integers(3, VOCABULARY, 90).tolist())
    for version in range(3):
        sampler.load(version, directories[version])
        sampler.submit(ticket(version, n=3, version=version), question)
        for one in drain(sampler):
            np.testing.assert_allclose(
                one.sampler_logprobs, reference(models[version], question, one.ids), atol=TOLERANCE
            )


@pytest.mark.slow
def test_a_worker_does_not_grow_with_updates_under_load(sampler, versions):
    """oneDNN would keep a kernel for each number of tokens in a step, 0.4 MB each: 110 MB and more in 100 updates."""
    _, directories = versions

    def largest():
        return max(one.memory_info().rss for one in psutil.Process().children(recursive=True)) / 2**20

    sizes = []
    for version in range(120):
        sampler.load(version, directories[version % 3])
        while sampler.in_flight < 24:
            index = sampler._count
            question = prompt(np.random.default_rng(index).integers(3, VOCABULARY, 1 + index % 90).tolist(), index)
            sampler.submit(ticket(index, n=4, version=version), question)
        sampler.poll(0.02)
        sizes.append(largest())
    assert sizes[-1] - sizes[40] < 30


def test_what_does_not_fit_one_step_is_computed_again_over_several(open_vllm, model_path, versions):
    """2,000 tokens in flight and more, 256 to a step: no prompt is computed in parts, which a CPU could not sample."""
    models, directories = versions
    sampler = open_vllm(model_path, max_batch=16, arguments={"max_num_batched_tokens": LONGEST})
    rng = np.random.default_rng(11)
    prompts = [prompt(rng.integers(3, VOCABULARY, 90 + index).tolist(), index) for index in range(8)]
    done, parts = sample_across_updates(sampler, directories, prompts, n=4)
    sound(done, prompts, 4)
    assert len(parts) >= 2 and sum(len(one.spans) > 1 for one in done) >= 8
    truthful(done, prompts, models)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["tensor_parallel_size", "data_parallel_size"])
def test_every_worker_of_a_parallel_engine_samples_with_each_version(open_vllm, model_path, versions, parallel):
    models, directories = versions
    sampler = open_vllm(model_path, max_batch=16, arguments={parallel: 2})
    try:
        prompts = ragged(20, seed=4, vocabulary=VOCABULARY)
        done, parts = sample_across_updates(sampler, directories, prompts, n=4)
        sound(done, prompts, 4)
        assert len(parts) >= 2 and sum(len(one.spans) > 1 for one in done) >= 8
        truthful(done, prompts, models)
    finally:
        sampler.close()


def cast(model, dtype, directory):
    """A version with one tensor of another type."""
    directory.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].to(dtype)}, directory / "model.safetensors")
    return directory


def broken(tmp_path):
    """Versions that must not be sampled from, and what is said of them."""
    shape, nan, short = served_llama(1), served_llama(1), served_llama(1)
    shape.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(64, 97))
    nan.model.norm.weight.data[3] = float("nan")
    del short.model.layers[0].input_layernorm.weight
    more = served_llama(1)
    more.model.extra = torch.nn.Parameter(torch.zeros(3))
    empty, torn = tmp_path / "empty", tmp_path / "torn"
    empty.mkdir()
    torn.mkdir()
    whole = published(served_llama(1), tmp_path / "whole") / "model.safetensors"
    (torn / "model.safetensors").write_bytes(whole.read_bytes()[:-100])
    return [
        (published(shape, tmp_path / "shape"), r"down_proj.weight is .64, 97., the model at model.path has .64, 96."),
        (published(nan, tmp_path / "nan"), "model.norm.weight has values that are not finite"),
        (published(short, tmp_path / "short"), "input_layernorm.weight is missing"),
        (published(more, tmp_path / "more"), "model.extra is not in the model"),
        (published(served_llama(1).to(torch.float64), tmp_path / "double"), "is float64; publish weights as float32"),
        (cast(served_llama(1), torch.int8, tmp_path / "int8"), "norm.weight is int8; publish weights as float32"),
        (cast(served_llama(1), torch.float8_e4m3fn, tmp_path / "fp8"), "norm.weight is F8_E4M3; publish weights"),
        (empty, "not readable as safetensors"),
        (torn, "not readable as safetensors"),
    ]  # fmt: skip


def test_weights_that_do_not_fit_are_named_and_the_old_ones_go_on(sampler, versions, tmp_path):
    models, directories = versions
    sampler.load(5, directories[0])
    question = prompt([5, 6])
    sampler.submit(ticket(0, n=30, version=5), question)
    for directory, message in broken(tmp_path):
        with pytest.raises(WeightsUnusable, match=message):
            sampler.check(directory)
        assert sampler.version == 5
    done = drain(sampler)
    sampler.submit(ticket(1, n=4, version=5), question)
    for one in done + drain(sampler):
        assert one.spans == ((5, 0, len(one.ids)),)
        np.testing.assert_allclose(one.sampler_logprobs, reference(models[0], question, one.ids), atol=TOLERANCE)


@torch.inference_mode()
def mixture(models, question, one):
    """log-probs when each token's keys and values stay those of the weights that were loaded when it was fed."""
    cache, before = DynamicCache(), np.frombuffer(question.tokens, "<i4").tolist()
    scores = []
    for version, start, end in one.spans:
        # Sampling token t feeds token t − 1; the first feeds the whole prompt.
        fed = before + one.ids[: end - 1].tolist() if start == 0 else one.ids[start - 1 : end - 1].tolist()
        logits = models[version % 3](input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True).logits[0]
        chosen = torch.tensor(one.ids[start:end].tolist())
        logprobs = torch.log_softmax(logits[-len(chosen) :].float(), -1)
        scores.append(logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).numpy())
    return np.concatenate(scores)


@pytest.fixture(scope="module")
def approximate(open_vllm, model_path):
    """An engine that keeps keys and values across loads, of a run with two other end tokens."""
    return open_vllm(model_path, max_batch=16, clear_cache=False, eos=(5, 9))


def test_with_the_cache_kept_the_recorded_log_probs_are_the_samplers_own_mixture(approximate, versions):
    models, directories = versions
    prompts = [prompt([3 + index, 20], index) for index in range(16)]  # too short to share a block
    done, _ = sample_across_updates(approximate, directories, prompts, n=4)
    sound(done, prompts, 4)
    mixed = [one for one in done if len(one.spans) > 1]
    assert len(mixed) >= 8
    pure = 0.0
    for one in done:
        question = prompts[one.prompt]
        np.testing.assert_allclose(one.sampler_logprobs, mixture(models, question, one), atol=TOLERANCE)
        for used, start, end in one.spans[1:]:
            expected = reference(models[used % 3], question, one.ids)
            pure = max(pure, float(np.abs(one.sampler_logprobs[start:end] - expected[start:end]).max()))
    assert pure > 0.01  # they belong to no single version


def test_with_the_cache_kept_only_requests_in_flight_at_an_update_mix_versions(approximate, versions, monkeypatch):
    """One prompt of three full blocks under 20 versions: what begins after an update reuses nothing from before it."""
    models, directories = versions
    question = prompt(np.random.default_rng(6).integers(10, VOCABULARY, 100).tolist())
    done = []
    for version in range(20):
        approximate.load(version, directories[version % 3])
        approximate.submit(ticket(version, n=3, version=version), question)
        with monkeypatch.context() as last:  # of one token: when it is here, those submitted before it have begun
            last.setattr(approximate, "_limit", 1)
            approximate.submit(ticket(100 + version, n=1, version=version), question)
        until = time.monotonic() + 60
        while not any(one.prompt == 100 + version for one in done):
            assert time.monotonic() < until
            done += approximate.poll(0.001)
    done += drain(approximate)
    assert len(done) == 80
    mixed = [one for one in done if len(one.spans) > 1]
    assert len(mixed) >= 10
    for one in done:
        (used, start, end), version = one.spans[0], one.prompt % 100
        assert (used, start) == (version, 0)
        expected = reference(models[version % 3], question, one.ids)
        np.testing.assert_allclose(one.sampler_logprobs[:end], expected[:end], atol=TOLERANCE)
    for one in mixed:  # each key and value is of the version that was loaded when its token was fed
        np.testing.assert_allclose(one.sampler_logprobs, mixture(models, question, one), atol=TOLERANCE)


def test_scoring_sees_the_keys_and_values_that_sampling_would_reuse(approximate, versions, monkeypatch):
    """With the prefix cache not salted, sampling reuses keys and values of other weights, and scores say so."""
    models, directories = versions
    rng = np.random.default_rng(8)
    sequence = tuple(rng.integers(3, VOCABULARY, length).astype(np.int32) for length in (80, 12))
    expected = {version: reference(models[version], prompt(sequence[0].tolist()), sequence[1]) for version in (0, 1)}
    for salted in (True, False):
        if not salted:
            monkeypatch.setattr(approximate, "_input", tokens_input)
        for version in (0, 1):
            approximate.load(version, directories[version])
            off = np.abs(approximate.score([sequence])[0] - expected[version]).max()
            assert off < TOLERANCE or (version == 1 and not salted and off > 0.1)


def test_the_runs_end_tokens_end_an_answer_and_the_tokenizers_does_not(approximate, versions):
    _, directories = versions
    approximate.load(0, directories[0])
    approximate.submit(ticket(0, n=120), prompt([7, 7]))
    done = drain(approximate)
    ends = Counter(int(one.ids[-1]) for one in done if one.finish == "stop")
    assert set(ends) == {5, 9}
    assert any(2 in one.ids for one in done)
    for one in done:
        assert not {5, 9} & set(one.ids[:-1].tolist())
        assert one.finish == "stop" or len(one.ids) == MAX_NEW


def test_tied_embeddings_are_renewed_everywhere_and_a_load_that_fails_midway_ends_the_engine(open_vllm, tmp_path):
    models = [served_llama(seed, tied=True) for seed in (1, 2)]
    base = save(models[0], tmp_path / "base")
    directories = [published(model, tmp_path / f"v{index}") for index, model in enumerate(models)]
    sampler = open_vllm(base, max_batch=16)
    question = prompt([5, 6, 7])
    for version in (0, 1, 2):
        sampler.load(version, directories[version % 2])
        sampler.submit(ticket(version, n=6, version=version), question)
        for one in drain(sampler):
            expected = reference(models[version % 2], question, one.ids)
            np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)

    torn = tmp_path / "torn"
    torn.mkdir()
    whole = (directories[1] / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[:-4000])
    sampler._files = SimpleNamespace(check=lambda directory: None, adapters=False)  # as if it tore after the check
    sampler.submit(ticket(9, n=6, version=2), question)
    with pytest.raises(EngineError, match=r"version 3 failed in the middle of loading.*nothing more is sampled"):
        sampler.load(3, torn)
    assert sampler.in_flight == 0


def test_an_engine_that_hangs_or_dies_says_so_and_closes_in_bounded_time(open_vllm, model_path, versions, monkeypatch):
    _, directories = versions
    before = set(psutil.Process().children(recursive=True))
    sampler = open_vllm(model_path, max_batch=4)
    ours = [process for process in psutil.Process().children(recursive=True) if process not in before]
    core = next(process for process in ours if "EngineCore" in " ".join(process.cmdline()) + process.name())
    sampler.load(0, directories[0])
    sampler.submit(ticket(0, n=200), prompt([5, 6]))
    sampler.poll(0.1)
    os.kill(core.pid, signal.SIGSTOP)
    hanging = r"vLLM has sampled nothing for \d+ s with \d+ completions in flight \(limit"
    with monkeypatch.context() as short, pytest.raises(EngineError, match=hanging):
        short.setattr(sampler._progress, "patience", Patience(1.0, 5.0))
        drain(sampler, 30.0)
    os.kill(core.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="vLLM aborted a request"):
        drain(sampler)
    start = time.monotonic()
    sampler.close()
    sampler.close()
    assert time.monotonic() - start < 60
    _, alive = psutil.wait_procs(ours, timeout=60)
    assert not [process for process in alive if "VLLM" in process.name() or "EngineCore" in process.name()]

"""The Countdown example: its problems, its prompt files and its base checkpoint are what its README says they are."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "countdown"
sys.path.insert(0, str(FOLDER))

import make_base  # noqa: E402
import task  # noqa: E402

SPLITS = ("train", "validation", "eval")


def lines(split: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text().splitlines()]


def key(line: dict) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(line["record"]["numbers"])), line["record"]["target"]


def independent_value(text: str) -> tuple[Fraction, list[int]]:
    """Value and sorted numbers of an expression of spaced tokens, by recursive descent; shares nothing with task.py."""
    tokens = text.split()
    used: list[int] = []

    def factor() -> Fraction:
        token = tokens.pop(0)
        if token == "(":
            inner = chain(("+", "-"), lambda: chain(("*", "/"), factor))
            assert tokens.pop(0) == ")"
            return inner
        used.append(int(token))
        return Fraction(int(token))

    def chain(signs, operand) -> Fraction:
        total = operand()
        while tokens and tokens[0] in signs:
            sign, value = tokens.pop(0), operand()
            total = {"+": total.__add__, "-": total.__sub__, "*": total.__mul__, "/": total.__truediv__}[sign](value)
        return total

    total = chain(("+", "-"), lambda: chain(("*", "/"), factor))
    assert not tokens
    return total, sorted(used)


numbers = st.lists(st.sampled_from(task.NUMBERS), min_size=3, max_size=4).map(lambda drawn: tuple(sorted(drawn)))


@settings(max_examples=60, deadline=None)
@given(numbers)
@pytest.mark.slow
def test_every_enumerated_answer_is_right_and_fits_the_token_limit(drawn):
    for target, texts in task.solutions(drawn).items():
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert independent_value(text) == (target, list(drawn)), text
            assert len(text.split()) + 1 <= task.MAX_NEW_TOKENS


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(task.NUMBERS), min_size=3, max_size=3).map(lambda drawn: tuple(sorted(drawn))))
def test_the_enumeration_misses_no_target_that_brute_force_reaches(drawn):
    reached = set()
    for a, b, c in set(permutations(drawn)):
        for first, second in product("+-*/", repeat=2):
            for text in (f"( {a} {first} {b} ) {second} {c}", f"{a} {first} ( {b} {second} {c} )"):
                try:
                    value, _ = independent_value(text)
                except ZeroDivisionError:
                    continue
                if value.denominator == 1 and value in task.TARGETS:
                    reached.add(int(value))
    assert set(task.solutions(drawn)) == reached


def test_known_problems_have_the_answers_known_for_them():
    assert task.solutions((3, 3, 8, 8))[24] == ["8 / ( 3 - 8 / 3 )"]
    assert task.solutions((1, 2))[2] == ["2 * 1", "2 / 1"]
    assert len(task._expressions((2, 3, 5))) == 68  # OEIS A140606: expressions in three different numbers


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.slow
def test_a_prompt_file_has_its_stated_length_and_only_problems_with_enough_answers(split):
    found = lines(split)
    assert len(found) == make_base.SPLITS[split]
    for line in found:
        drawn, target = key(line)
        assert line == task.Problem(drawn, target).line()
    for line in found[:100]:
        drawn, target = key(line)
        assert len(task.solutions(drawn)[target]) >= make_base.MIN_ANSWERS


def test_no_problem_is_in_two_prompt_files_or_twice_in_one():
    counts = Counter(key(line) for split in SPLITS for line in lines(split))
    assert counts.most_common(1)[0][1] == 1


@pytest.mark.slow
def test_the_base_is_trained_on_no_problem_of_the_prompt_files_and_on_the_stated_share_of_wrong_answers():
    answers = {drawn: task.solutions(drawn) for size in (2, 3, 4) for drawn in task.multisets(size)}
    files, training = make_base.split(answers, make_base.random.Random(make_base.SEED))
    assert {name: [problem.line() for problem in found] for name, found in files.items()} == {
        split: lines(split) for split in SPLITS
    }
    taken = {problem for found in files.values() for problem in found}
    assert not taken.intersection(training)

    rng = make_base.random.Random(0)
    n = 4000
    seen = Counter()
    for problem in rng.choices(training, k=n):
        value, used = independent_value(make_base.lesson(problem, answers, rng))
        seen["misuse" if used != list(problem.numbers) else "miss" if value != problem.target else "right"] += 1
    for kind, share in (("misuse", make_base.MISUSE), ("miss", make_base.MISS)):
        # A problem without a mistake of the drawn kind gets a right answer, so the share is met from below.
        error = 4 * (share * (1 - share) / n) ** 0.5
        assert share * 0.8 - error < seen[kind] / n < share + error, seen


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "base")


@pytest.mark.slow
def test_the_tokenizer_round_trips_every_prompt_and_answer_one_token_per_word(tokenizer):
    texts = [line["prompt"] for split in SPLITS for line in lines(split)]
    texts += [text for line in lines("eval") for text in task.solutions(key(line)[0])[key(line)[1]]]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_the_checkpoint_is_small_untied_and_fits_its_tokenizer(tokenizer):
    assert sum(file.stat().st_size for file in (FOLDER / "base").iterdir()) <= 4_000_000
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "base")
    assert model.config.vocab_size == len(tokenizer)
    assert not model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.slow
def test_the_base_is_sometimes_right_and_mostly_wrong(tokenizer):
    """What training is to improve: on 64 held-out prompts x 16 samples the pass rate is between .06 and .25."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "base").eval()
    chosen = lines("eval")[:64]
    batch = tokenizer([line["prompt"] for line in chosen], padding=True, return_tensors="pt")
    sampled = model.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=task.MAX_NEW_TOKENS, num_return_sequences=16
    )
    texts = tokenizer.batch_decode(sampled[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = solved = 0
    for index, line in enumerate(chosen):
        drawn, target = key(line)
        spelled = {re.sub(r"\s", "", text) for text in task.solutions(drawn)[target]}
        hits = [re.sub(r"\s", "", text) in spelled for text in texts[16 * index : 16 * (index + 1)]]
        right += sum(hits)
        solved += any(hits)
    assert 0.06 < right / len(texts) < 0.25
    assert solved / len(chosen) > 0.5

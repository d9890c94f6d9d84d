"""Prompts from any layout: Parquet, `datasets`, mapped and nested columns, chat templates; what an error names."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from broker.settings import DataSettings
from learner.data.prompts import DataUnusable, load_tokenizer, read_prompts
from learner.data.rows import Row, count, pass_rates, rows
from tests.learner.learner_rig import VOCABULARY

PROBLEMS: list[dict[str, Any]] = [
    {"question": "w3", "meta": {"id": 7, "tags": ["a", "b"]}, "solution": '{"final": [1, 2]}', "score": 0.5},
    {"question": "w4", "meta": {"id": 8, "tags": []}, "solution": '{"final": []}', "score": 1.5},
]
MAPPED: dict[str, Any] = {
    "verifier": "math",
    "columns": {
        "prompt": "question",
        "record": {"answer": "json:solution", "info": {"id": "meta.id", "tags": "meta.tags"}, "score": "score"},
    },
    "record_constants": {"strict": True},
}
EXPECTED = [
    ("w3", "math", {"answer": {"final": [1, 2]}, "info": {"id": 7, "tags": ["a", "b"]}, "score": 0.5, "strict": True}),
    ("w4", "math", {"answer": {"final": []}, "info": {"id": 8, "tags": []}, "score": 1.5, "strict": True}),
]


def parquet(path: Path, problems: list[dict[str, Any]] = PROBLEMS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(problems), path)
    return path


def jsonl(path: Path, problems: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


def read(source: Path | str, **data: Any) -> list[Row]:
    settings = DataSettings.model_validate({"train": source, **data})
    return list(rows(settings.train, settings))


def parts(found: list[Row]) -> list[tuple[Any, str, dict[str, Any]]]:
    return [(row.prompt, row.verifier, row.record) for row in found]


def test_the_same_rows_come_from_jsonl_parquet_and_a_dataset_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parts(read(jsonl(tmp_path / "p.jsonl", PROBLEMS), **MAPPED)) == EXPECTED
    assert parts(read(parquet(tmp_path / "p.parquet"), **MAPPED)) == EXPECTED
    # `datasets` looks for a directory of that name before it asks the Hub: the real loader, no network.
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "owner" / "problems" / "train.parquet")
    assert parts(read("datasets:owner/problems:train", **MAPPED)) == EXPECTED
    assert parts(read("datasets:owner/problems:train[:1]", **MAPPED)) == EXPECTED[:1]


def test_a_dataset_that_cannot_be_loaded_says_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "owner" / "problems" / "train.parquet")
    with pytest.raises(DataUnusable, match=r"datasets:owner/problems:test: datasets cannot load it .*split"):
        read("datasets:owner/problems:test", **MAPPED)


def test_a_template_puts_columns_into_text_and_doubled_braces_stand_for_themselves(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet")
    columns = {"prompt": "Solve {question} (no {meta.id}) in \\boxed{{}}", "record": {}}
    assert [row.prompt for row in read(path, verifier="math", columns=columns)] == [
        "Solve w3 (no 7) in \\boxed{}", "Solve w4 (no 8) in \\boxed{}",
    ]  # fmt: skip


def test_a_column_whose_name_has_dots_is_found_as_it_stands(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"a.b": "whole", "a": {"b": "nested"}, "choices": ["x", "y"]}])
    (row,) = read(path, verifier="math", columns={"prompt": "a.b", "record": {"second": "choices.1"}})
    assert (row.prompt, row.record) == ("whole", {"second": "y"})


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        (
            {},
            {"prompt": "qestion"},
            "p.parquet: row 2: column 'qestion' is missing; found meta, question, score, solution",
        ),
        ({}, {"prompt": "meta.idd"}, "p.parquet: row 2: column 'meta.idd' is missing; found id, tags"),
        ({"question": None}, {}, "p.parquet: row 2: column 'question' is NoneType, expected text"),
        ({}, {"prompt": "score"}, "p.parquet: row 2: column 'score' is float, expected text"),
        ({}, {"prompt": "{question}{meta}"}, "p.parquet: row 2: column 'meta' is dict, expected text"),
        ({"solution": "{"}, {}, "p.parquet: row 2: column 'solution' is not JSON"),
        ({}, {"record": "json:question"}, "p.parquet: row 2: column 'question' is not JSON"),
        ({"solution": "[1]"}, {"record": "json:solution"}, "p.parquet: row 2: column 'solution' is not an object"),
        ({}, {"record": "question"}, "p.parquet: row 2: column 'question' is str, expected an object"),
        ({"solution": str(2**70)}, {"record": {"n": "json:solution"}}, "column 'solution' is an integer over 64 bits"),
        ({}, {"record": {"strict": "question"}}, "p.parquet: row 2: record has 'strict' already"),
    ],
)
def test_an_error_names_file_row_and_column(
    tmp_path: Path, change: dict[str, Any], columns: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "p.parquet", [PROBLEMS[0], PROBLEMS[1] | change])
    settings = MAPPED | {"columns": MAPPED["columns"] | columns}
    with pytest.raises(DataUnusable) as caught:
        read(path, **settings)
    # Without a change the first row has the fault already.
    assert (message if change else message.replace("row 2", "row 1")) in str(caught.value)


def test_a_value_that_no_record_can_hold_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", [PROBLEMS[0] | {"day": date(2026, 1, 1)}])
    with pytest.raises(DataUnusable, match=r"p\.parquet: row 1: column 'day' is date, which no record can hold"):
        read(path, **MAPPED | {"columns": {"prompt": "question", "record": {"day": "day"}}})


def test_base_pass_rates_come_with_the_rows_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"z": {"rate": 0.25}}, {"z": {"rate": 1}}])
    data = DataSettings.model_validate({"train": path, "columns": {"pass_rate": "z.rate"}})
    assert list(pass_rates(path, data)) == [0.25, 1.0]
    for wrong in (1.5, -0.1, True, "0.5", None, float("nan")):
        jsonl(path, [{"z": {"rate": 0.25}}, {"z": {"rate": wrong}}])
        with pytest.raises(DataUnusable, match=r"p\.jsonl:2: field 'z\.rate' is .* from 0 to 1"):
            list(pass_rates(path, data))
    with pytest.raises(DataUnusable, match="field 'pass_rate' is missing"):
        list(pass_rates(path, DataSettings(train=path)))


def test_files_that_are_not_what_their_name_says_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DataUnusable, match=r"text\.parquet: not a Parquet file"):
        read(tmp_path / "text.parquet")
    with pytest.raises(DataUnusable, match=r"none\.parquet: no such file"):
        read(tmp_path / "none.parquet")


def test_rows_are_counted_without_being_read(tmp_path: Path) -> None:
    assert count(parquet(tmp_path / "p.parquet"), 10) == 2
    assert count(jsonl(tmp_path / "p.jsonl", PROBLEMS * 3), 4) == 4
    assert count("datasets:owner/problems:train", 4) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": 3}, "3 is no source of prompts"),
        ({"train": "datasets:a/b"}, "write datasets:owner/name:split"),
        ({"train": "datasets:../etc:train"}, "write datasets:owner/name:split"),
        ({"train": "x", "columns": {"prompt": "a {b"}}, "write a brace that is no column as {{ or }}"),
        ({"train": "x", "columns": {"prompt": "a {} {b!r}"}}, "braces hold a column's name"),
        ({"train": "x", "columns": {"record": {"a": {"b": 3}}}}, "data.columns.record.a.b = 3: name a column"),
        ({"train": "x", "chat": {"system": "s"}}, "data.chat.enabled = true"),
    ],
)
def test_settings_that_cannot_work_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataSettings.model_validate(data)
    assert message in str(caught.value)


def test_settings_survive_the_way_to_another_process() -> None:
    settings = DataSettings.model_validate({"train": "a.parquet", "eval": "datasets:o/n/c@v1:test[:5]", **MAPPED})
    again = DataSettings.model_validate_json(settings.model_dump_json())
    assert again == settings and isinstance(again.train, Path) and isinstance(again.eval, str)


# --- chat templates

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ {'system': 'w5', 'user': 'w6', 'assistant': 'w8'}[m['role']] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}w7{% endif %}{% if quiet %} w9{% endif %}"
)


def prompts(path: Path, model: Path, template: str | None = TEMPLATE, **chat: Any) -> list[tuple[str, list[int]]]:
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = template
    data = DataSettings.model_validate({"train": path, "chat": {"enabled": True, **chat}})
    found = read_prompts(path, tokenizer, vocabulary=VOCABULARY, longest=20, data=data)
    return [(prompt.text, memoryview(prompt.tokens).cast("i").tolist()) for prompt in found]


def chat_file(tmp_path: Path, prompt: Any) -> Path:
    return jsonl(tmp_path / "chat.jsonl", [{"prompt": prompt, "verifier": "even", "record": {}}])


def test_a_prompt_becomes_a_user_message_and_a_list_stays_as_it_is(tmp_path: Path, model_path: Path) -> None:
    assert prompts(chat_file(tmp_path, "w3"), model_path) == [("w6 w3 w7", [6, 3, 7])]
    turns = [
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w4"},
        {"role": "user", "content": "w3"},
    ]
    assert prompts(chat_file(tmp_path, turns), model_path)[0][1] == [6, 3, 8, 4, 6, 3, 7]
    assert prompts(chat_file(tmp_path, "w3"), model_path, system="w4", options={"quiet": True})[0][1] == [
        5,
        4,
        6,
        3,
        7,
        9,
    ]


def test_tokens_are_those_of_the_tokenizer_applying_its_template_itself(tmp_path: Path, model_path: Path) -> None:
    tokenizer = load_tokenizer(model_path)
    tokenizer.chat_template = TEMPLATE
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w3 w4"}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert prompts(chat_file(tmp_path, "w3 w4"), model_path)[0][1] == wanted


def test_what_a_template_cannot_do_is_said(tmp_path: Path, model_path: Path) -> None:
    with pytest.raises(DataUnusable, match="no chat template"):
        prompts(chat_file(tmp_path, "w3"), model_path, template=None)
    with pytest.raises(DataUnusable, match=r"chat\.jsonl:1: the chat template refuses the prompt \(no tools\)"):
        prompts(chat_file(tmp_path, [{"role": "tool", "content": "w3"}]), model_path)
    with pytest.raises(DataUnusable, match=r"chat\.jsonl:1: prompt begins with a system message"):
        prompts(chat_file(tmp_path, [{"role": "system", "content": "w3"}]), model_path, system="w4")
    with pytest.raises(DataUnusable, match=r"chat\.jsonl:1: field 'prompt' holds chat messages; set data.chat.enabled"):
        list(rows(chat_file(tmp_path, [{"role": "user", "content": "w3"}]), DataSettings(train=tmp_path)))

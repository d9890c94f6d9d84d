# ruff: noqa: E501  (programs are data)
"""The verifier `python`: right and wrong programs, records, answers, options, and errors that are not the answer's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verifier.verifier_rig import Rig, ready, serving, until
from verifier.builtin.python.inside.forms import MAX_DEPTH, NoForm, decode, encode
from verifier.builtin.python.printed import same_text
from verifier.builtin.python.problem import program_of, read_record
from verifier.builtin.python.values import NotAValue, equal, read, value_of
from verifier.builtin.python.verifier import PythonCode
from verifier.protocol import Judgement, VerifierError, make
from verifier.sandbox.limits import SandboxUnavailable
from verifier.service import VerifierService

ADD = {
    "entry": "add",
    "tests": [{"call": [1, 2], "expected": 3}, {"call": [], "kwargs": {"a": 5, "b": 6}, "expected": 11}],
}


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def python(request: pytest.FixtureRequest) -> Iterator[PythonCode]:
    try:
        verifier = PythonCode(sandbox={"level": request.param}, seconds_per_test=3, seconds=20)
    except SandboxUnavailable as error:
        pytest.skip(f"{request.param}: {error}")
    yield verifier
    verifier.close()


def patiently(python: PythonCode, record: dict[str, Any], answer: str) -> Judgement:
    """The judgement, asked for again if the machine was too busy to give one."""
    found = python.judge(record, answer)
    for _ in range(4):
        if found.reason == "starved":
            found = python.judge(record, answer)
    return found


# --- right programs

HONEST: dict[str, tuple[dict[str, Any], str]] = {
    "a function": (ADD, "def add(a, b):\n    return a + b\n"),
    "with prose and a fence": (ADD, "First I add.\n\n```python\ndef add(a, b):\n    return a + b\n```\nDone."),
    "the last of two fences": (ADD, "```python\ndef add(a, b): return 0\n```\nNo:\n```py\ndef add(a, b): return a + b\n```"),
    "a fence of text after the program": (ADD, "```python\ndef add(a, b): return a + b\n```\n```text\n3\n```"),
    "a fence in a fence": (ADD, "~~~python\ndef add(a, b):\n    '''\n```\n    '''\n    return a + b\n~~~"),
    "a lambda and a print": (ADD, "add = lambda a, b: a + b\nprint('noise')"),
    "a main block": (ADD, "def add(a, b): return a + b\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))"),
    "a method": (
        {"entry": "Solution.add", "tests": ADD["tests"]}, "class Solution:\n    def add(self, a, b): return a + b",
    ),
    "checks": (
        {"entry": "add", "tests": [{"check": "assert candidate(1, 2) == 3\nassert add(a=2, b=2) == 4"},
                                   {"check": "def check(f):\n    for i in range(20): assert f(i, i) == 2 * i"}]},
        "def add(a, b): return a + b",
    ),
    "tuples for lists": ({"entry": "f", "tests": [{"call": [[1]], "expected": [[1, 2], ["x"]]}]}, "def f(x): return ((1, 2), ('x',))"),
    "nothing": ({"entry": "f", "tests": [{"call": [], "expected": None}]}, "def f(): pass"),
    "floats near enough": (
        {"entry": "f", "tests": [{"call": [3.0], "expected": 0.3333333}], "tolerance": 1e-6}, "def f(x): return 1 / x",
    ),
    "an int where a float is expected": ({"entry": "f", "tests": [{"call": [], "expected": 2.0}]}, "def f(): return 2"),
    "big numbers": ({"entry": "f", "tests": [{"call": [2], "expected": 2**4000}]}, "def f(x): return x ** 4000"),
    "an enum of int": ({"entry": "f", "tests": [{"call": [], "expected": 1}]}, "import enum\nclass E(enum.IntEnum): A = 1\ndef f(): return E.A"),
    "text of all kinds": ({"entry": "f", "tests": [{"call": ["é\n\u2028😀"], "expected": "😀\u2028\né"}]}, "def f(x): return x[::-1]"),
    "a thread with a large stack": (
        {"entry": "f", "tests": [{"call": [20000], "expected": 20000}]},
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\ndef g(n): return 0 if n == 0 else 1 + g(n - 1)\n"
        "def f(n):\n    out = []\n    t = threading.Thread(target=lambda: out.append(g(n)))\n    t.start()\n    t.join()\n    return out[0]",
    ),
    "standard library": (
        {"entry": "f", "tests": [{"call": [[3, 1, 2]], "expected": [1, 2, 3]}]},
        "import asyncio, collections, dataclasses, functools, heapq, itertools, json, math, random, re, tempfile, typing, decimal\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\nasync def main(x):\n    await asyncio.sleep(0)\n    return sorted(x)\n"
        "def f(x):\n    with tempfile.NamedTemporaryFile() as t: t.write(b'x')\n    return asyncio.run(main([P(i).x for i in x]))",
    ),
    "stdin and stdout": (
        {"tests": [{"input": "1 2\n", "expected": "3\n"}, {"input": "5 6", "expected": "11"}]},
        "a, b = map(int, input().split())\nprint(a + b)",
    ),
    "exit() and a main block": (
        {"tests": [{"input": "x\n", "expected": "x"}]}, "def main():\n    print(input())\n    exit()\nif __name__ == '__main__': main()",
    ),
    "stdin in one go": (
        {"tests": [{"input": "1\n" * 20000, "expected": "20000"}]},
        "import sys\ndata = sys.stdin.buffer.read().split()\nsys.stdout.write(str(sum(map(int, data))) + '  \\n\\n')",
    ),
    "both kinds": ({"entry": "f", "tests": [{"call": [2], "expected": 4}, {"input": "3", "expected": "9"}]},
                   "def f(x): return x * x\nif __name__ == '__main__': print(f(int(input())))"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_right_programs_pass(python: PythonCode, name: str) -> None:
    record, answer = HONEST[name]
    found = python.judge(record, answer)
    assert (found.outcome, found.reason) == ("pass", "correct"), found


def test_a_record_whose_lists_arrive_as_tuples_is_the_same(python: PythonCode) -> None:
    record = {"entry": "f", "tests": ({"call": ((1, 2),), "expected": (2, 1)},)}
    assert python.judge(record, "def f(x): return x[::-1]").outcome == "pass"


def test_the_same_program_with_other_trailing_space_is_the_same_answer(python: PythonCode) -> None:
    one = python.judge(ADD, "def add(a, b):\n    return a + b\n")
    other = python.judge(ADD, "text\n```python\n\ndef add(a, b):  \n    return a + b\n\n```")
    assert one.answer == other.answer != ""


# --- wrong programs


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("def add(a, b): return a - b", "wrong_answer"),
        ("def add(a, b): return str(a + b)", "wrong_answer"),
        ("def add(a, b): return float(a + b)", "wrong_answer"),
        ("def add(a, b): return a + b == 3 or 11", "wrong_answer"),
        ("def add(a, b): return {a + b}", "wrong_answer"),
        ("def add(a, b): return {1: 2}", "wrong_answer"),
        ("def add(a, b): return object()", "not_json"),
        ("def add(a, b): return {object(): 1}", "not_json"),
        ("def add(a, b): return [a + b for _ in (1,)].__iter__()", "not_json"),
        ("def add(a, b): raise ValueError('no')", "exception"),
        ("def add(a, b) return a", "syntax_error"),
        ("def plus(a, b): return a + b", "no_entry"),
        ("import sys; sys.exit()", "ended_early"),
        ("", "no_program"),
        ("```python\ndef add(a, b): return a + b", "no_program"),
    ],
)
def test_a_wrong_program_fails_with_the_reason(python: PythonCode, answer: str, reason: str) -> None:
    found = python.judge(ADD, answer)
    assert (found.outcome, found.reason) == ("fail", reason), found


def test_a_check_that_does_not_hold_fails(python: PythonCode) -> None:
    found = python.judge({"entry": "f", "tests": [{"check": "assert f(1) == 2, 'not two'"}]}, "def f(x): return x")
    assert (found.reason, found.detail) == ("check_failed", "test 0: AssertionError: not two")


@pytest.mark.slow
def test_a_check_made_endless_by_a_value_fails_and_an_endless_check_is_an_error(python: PythonCode) -> None:
    record = {"entry": "f", "tests": [{"check": "while candidate(1) != 2: pass\nfor i in range(candidate(2)): pass"}]}
    found = patiently(python, record, "def f(x): return 2 if x == 1 else 10**15")
    assert (found.outcome, found.reason) == ("fail", "check_failed"), found
    found = patiently(python, {"entry": "f", "tests": [{"check": "while True: pass"}]}, "def f(x): return 1")
    assert (found.outcome, found.reason) == ("error", "sandbox_trouble"), found


def test_a_program_must_end_with_exit_code_0(python: PythonCode) -> None:
    found = python.judge({"tests": [{"input": "", "expected": "3"}]}, "print(3)\nraise SystemExit(1)")
    assert (found.outcome, found.reason) == ("fail", "exception")


@pytest.mark.slow
def test_each_test_has_its_own_time_and_all_together_have_theirs(python: PythonCode) -> None:
    slow = "import time\ndef f(x):\n    time.sleep(x)\n    return 1"
    record = {"entry": "f", "tests": [{"call": [1], "expected": 1}] * 4}
    assert patiently(python, record, slow).outcome == "pass"
    found = patiently(python, {"entry": "f", "tests": [{"call": [4], "expected": 1}]}, slow)
    assert (found.outcome, found.reason) == ("fail", "time_limit"), found
    found = patiently(python, {"entry": "f", "tests": [{"call": [2.2], "expected": 1}] * 12}, slow)
    assert (found.outcome, found.reason) == ("fail", "time_limit"), found


# --- errors


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({}, "tests must be a list"),
        ({"tests": []}, "1 to"),
        ({"tests": [{"call": [1], "expected": 1}]}, "entry is missing"),
        ({"entry": "1f", "tests": [{"call": [1], "expected": 1}]}, "entry is '1f'"),
        ({"entry": "f", "tests": [{"call": 1, "expected": 1}]}, r"tests\[0\] has"),
        ({"entry": "f", "tests": [{"call": [1]}]}, r"tests\[0\] has \['call'\]"),
        ({"entry": "f", "tests": [{"call": [float("nan")], "expected": 1}]}, "not JSON"),
        ({"entry": "f", "tests": [{"check": "assert ("}]}, "not Python"),
        ({"tests": [{"input": "x", "expected": 3}]}, r"tests\[0\] has"),
        ({"tests": [{"input": "x", "expected": "3"}], "tolerance": -1}, "tolerance"),
        ({"tests": [{"input": "x", "expected": "3"}], "timeout": 3}, "timeout is not a known key"),
    ],
)
def test_a_malformed_record_is_an_error(python: PythonCode, record: dict[str, Any], complaint: str) -> None:
    found = python.judge(record, "def f(x): return x")
    assert (found.outcome, found.reason) == ("error", "malformed_record")
    with pytest.raises(ValueError, match=complaint):
        read_record(record)


def test_a_sandbox_that_fails_is_an_error_and_not_a_wrong_answer(python: PythonCode) -> None:
    before = python._python
    python._python = "/no/such/python"
    try:
        found = python.judge(ADD, "def add(a, b): return a + b")
    finally:
        python._python = before
    assert (found.outcome, found.reason) in {("error", "sandbox_trouble"), ("fail", "ended_early")}, found
    if python.info["sandbox"] == "landlock":
        assert found.outcome == "error"


@pytest.mark.slow
def test_a_supervisor_that_is_killed_is_an_error(python: PythonCode) -> None:
    found = []
    program = "import time\ndef f(x):\n    time.sleep(2)\n    return 1"
    record = {"entry": "f", "tests": [{"call": [1], "expected": 1}]}
    thread = threading.Thread(target=lambda: found.append(python.judge(record, program)))
    thread.start()
    spawner = python._sandbox._spawner
    assert spawner is not None
    until = time.monotonic() + 10
    supervisors: list[int] = []
    while not supervisors and time.monotonic() < until:
        time.sleep(0.1)
        supervisors = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and f"PPid:\t{spawner.pid}\n" in _status(entry)
        ]
    os.kill(supervisors[0], signal.SIGKILL)
    thread.join()
    assert (found[0].outcome, found[0].reason) == ("error", "sandbox_trouble"), found


def _status(entry: Path) -> str:
    try:
        return (entry / "status").read_text()
    except OSError:
        return ""


# --- options


def test_it_is_built_in() -> None:
    try:
        verifier = make("python", {"seconds": 30})
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    assert isinstance(verifier, PythonCode)
    assert verifier.info["sandbox"] in ("bubblewrap", "landlock")
    verifier.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seconds_per_test": 0}, r"options.seconds_per_test = 0: .*greater than or equal to 0.1; correct"),
        ({"seconds": 1}, r"seconds = 1 is less than seconds_per_test = 5"),
        ({"memory_mib": 1}, r"options.memory_mib = 1: .*64"),
        ({"timeout": 3}, r"options.timeout = 3: Extra inputs"),
        (
            {"sandbox": {"level": "none"}},
            r"options.sandbox.level = 'none': .*'auto', 'bubblewrap', 'landlock' or 'unsafe'",
        ),
        ({"sandbox": {"readable": ["/"]}}, "would make everything readable"),
        ({"interpreter": "/no/python"}, "cannot be executed"),
        ({"import_from": ["no"]}, "not an absolute path"),
    ],
)
def test_an_invalid_option_is_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(VerifierError, match=complaint):
        make("python", options)


def test_packages_can_be_imported_from_the_directories_given(python: PythonCode, tmp_path: Path) -> None:
    package = Path("/tmp") / f"packages-{os.getpid()}"
    package.mkdir()
    (package / "seven.py").write_text("SEVEN = 7\n")
    package.chmod(0o755)
    try:
        other = PythonCode(sandbox={"level": python.info["sandbox"]}, import_from=[str(package)])
        record = {"entry": "f", "tests": [{"call": [], "expected": 7}]}
        assert other.judge(record, "from seven import SEVEN\ndef f(): return SEVEN").outcome == "pass"
        assert python.judge(record, "from seven import SEVEN\ndef f(): return SEVEN").reason == "exception"
        other.close()
    finally:
        shutil.rmtree(package)


@pytest.fixture(scope="module")
def prelude() -> Iterator[PythonCode]:
    try:
        verifier = PythonCode(prelude="import math\nfrom collections import *\nfrom typing import *\n")
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    yield verifier
    verifier.close()


def test_the_prelude_runs_before_every_program(prelude: PythonCode) -> None:
    program = "from __future__ import annotations\ndef f(x: List[int]) -> int: return math.prod(Counter(x))"
    record = {"entry": "f", "tests": [{"call": [[2, 3, 3]], "expected": 6}]}
    assert prelude.judge(record, program).outcome == "pass"
    script = {"tests": [{"input": "9", "expected": "3"}]}
    assert prelude.judge(script, "print(math.isqrt(int(input())))").outcome == "pass"
    assert prelude.judge(record, "def f(x):\n    return 1 +").reason == "syntax_error"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("import (", "prelude.*is not Python"), ("import no_such_module", "prelude does not run.*no_such_module")],
)
def test_a_prelude_that_does_not_run_is_refused(prelude: PythonCode, source: str, complaint: str) -> None:
    with pytest.raises(VerifierError, match=complaint):
        make("python", {"prelude": source})


# --- values

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_a_value_equals_itself_after_json(value: Any) -> None:
    found = read(json.dumps(encode(value)).encode())
    assert equal(value_of(encode(value)), found)
    if "$" not in json.dumps(value):
        assert equal(value, read(json.dumps(value).encode()))


keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.fractions() | st.decimals(allow_nan=False) | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
anything = st.recursive(
    keys | st.just(float("nan")) | st.integers(-(10**400), 10**400) | st.builds(range, st.integers(), st.integers()),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.lists(inner).map(deque)
    | st.sets(keys, max_size=4) | st.dictionaries(keys | st.just("$set"), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(anything)
@pytest.mark.slow
def test_every_value_survives_the_channel_with_its_type(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert types(decode(json.loads(text))) == types(value)
    assert equal(read(text.encode()), value_of(json.loads(text)))


@settings(deadline=None)
@given(anything, anything)
@pytest.mark.slow
def test_two_values_are_equal_only_if_python_says_so(one: Any, other: Any) -> None:
    read_one, read_other = (value_of(json.loads(json.dumps(encode(value)))) for value in (one, other))
    if equal(read_one, read_other) and "nan" not in repr((one, other)) and "(" not in repr((one, other)):
        assert one == other


def types(value: Any) -> Any:
    """A form of its own of a value, with the type of every part, for comparison."""
    if isinstance(value, list | tuple | deque):
        return type(value).__name__, [types(one) for one in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted((types(one) for one in value), key=repr)
    if isinstance(value, dict):
        return "dict", sorted(((types(key), types(one)) for key, one in value.items()), key=repr)
    return type(value).__name__, repr(value)


@pytest.mark.parametrize(
    "value", [object(), len, (one for one in ()), iter([]), {1: object()}, print, (1).__add__, Exception("x"), type]
)
def test_other_values_have_no_form(value: Any) -> None:
    with pytest.raises(NoForm):
        encode(value)


def test_a_value_that_holds_itself_or_is_too_deep_has_no_form() -> None:
    around: list[Any] = []
    around.append(around)
    deep: Any = ()
    for _ in range(MAX_DEPTH):
        deep = (deep,)
    for value in (around, deep):
        with pytest.raises(NoForm, match="nested"):
            encode(value)
    assert equal(read(json.dumps(encode(deep[0])).encode()), value_of(encode(deep[0])))


@pytest.mark.parametrize(
    "form",
    [{"$pickle": "00"}, {"$set": [[1]]}, {"$set": [{"a": 1}]}, {"$set": [1, 1]}, {"$set": [1, True]}, {"$set": [1, 1.0]},
     {"$dict": [[1, 2], [1, 3]]}, {"$dict": [[1]]}, {"$dict": {"a": 1}}, {"$dict": [[[1], 2]]}, {"$int": "12"}, {"$int": 5},
     {"$float": "1e9"}, {"$float": "-0.0"}, {"$bytes": "0"}, {"$complex": [1]}, {"$complex": ["1", "2"]}, {"$range": [1, 2, 0]},
     {"$fraction": [1, 0]}, {"$decimal": "x"}, {"$decimal": "sNaN"}, {"$tuple": 5}, {"$set": [1], "$tuple": [1]}, {"$": []},
     {"$frozenset": [{"$set": []}]}, {"$set": [{"$deque": []}]}, {"$set": [{"$tuple": [[]]}]}, object(), {1: 2}],
)  # fmt: skip
def test_a_form_outside_the_closed_set_is_refused(form: Any) -> None:
    with pytest.raises(NotAValue):
        value_of(form)


@pytest.mark.parametrize(
    ("expected", "found", "tolerance", "same"),
    [({0.5, 1.0}, {1.0000001, 0.5}, 1e-6, True), ({0.5, 1.0}, {1.1, 0.5}, 1e-6, False), ({1.0}, {1}, 0, True),
     ({1}, {1.0}, 0, False), ({(1, 0.5)}, {(1, 0.50000001)}, 1e-6, True), ({0.1: 1}, {0.1000000001: 1}, 1e-6, True),
     ({0.1: 1}, {0.1000000001: 2}, 1e-6, False), ({i / 7 for i in range(2000)}, {i / 7 + 1e-9 for i in range(2000)}, 1e-6, True),
     ({i / 7 for i in range(2000)}, {i / 7 + 1e-3 for i in range(2000)}, 1e-6, False), (-0.0, 1e-9, 1e-6, True)],
)  # fmt: skip
def test_the_tolerance_holds_inside_of_sets_and_dicts(expected: Any, found: Any, tolerance: float, same: bool) -> None:
    assert equal(value_of(encode(expected)), value_of(encode(found)), tolerance) is same


def test_colliding_hashes_cost_the_verifier_nothing() -> None:
    items = [{"$int": hex(number * sys.hash_info.modulus)} for number in range(1, 20_000)]
    text = json.dumps({"$set": items}).encode()
    begun = time.process_time()
    assert equal(read(text), read(text))
    assert time.process_time() - begun < 3


@given(values, values)
def test_equality_is_that_of_the_texts(one: Any, other: Any) -> None:
    def kinds(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kinds(inner) for key, inner in sorted(value.items())}
        if isinstance(value, list):
            return [kinds(inner) for inner in value]
        return [type(value).__name__, value]

    same = json.dumps(kinds(one)) == json.dumps(kinds(other))
    if same:
        assert equal(one, other)
    elif "float" not in json.dumps(kinds(one)):
        assert not equal(one, other)


@pytest.mark.parametrize(
    ("expected", "found"),
    [(1, True), (True, 1), (0, False), (1, 1.0), (None, False), ("1", 1), ([], {}), ([1], [1, 2]), ({"a": 1}, {"a": 1, "b": 2}),
     (1.0, True), (0.0, "0"), ([], None), ("", None), (1.0, 10**400)],
)  # fmt: skip
def test_values_of_other_kinds_are_not_equal(expected: Any, found: Any) -> None:
    assert not equal(expected, found, 0.1)


@pytest.mark.parametrize(
    "text",
    [b"", b"NaN", b"[Infinity]", b"-Infinity", b"1e999", b'{"a": 1, "a": 1}', b"1 2", b"'x'", b"\xff", b"9" * 5000,
     b"[" * 100_000, b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), b'{"a":' * 100_000],
)  # fmt: skip
def test_what_is_not_one_finite_shallow_value_is_refused(text: bytes) -> None:
    with pytest.raises(NotAValue):
        read(text)


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [("3", b"3\n", True), ("3\n", b"3", True), ("a\nb", b"a \r\nb\n\n", True), ("a b", b"a  b", False), ("", b"\n\n", True),
     ("3", b" 3", False), ("3", b"3\n3", False), ("a\n\nb", b"a\nb", False), ("3", b"3\xff", False), ("3", b"3\x0c", False)],
)  # fmt: skip
def test_printed_text_is_compared_line_by_line(expected: str, found: bytes, same: bool) -> None:
    assert same_text(expected, found) is same


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [("0.5 a", b"0.5000001\na\n", True), ("0.5 a", b"0.5 b", False), ("0.5", b"0.51", False), ("1000000.0", b"1000000.5", True),
     ("0", b"0.0000001", True), ("1000000007", b"1000000008", False), ("7", b"07", True), ("9" * 5000, b"9" * 4999 + b"8", False),
     ("9" * 5000, b"+" + b"9" * 5000, True), ("1e400", b"1e401", False), ("0.5", b"nan", False), ("0.5", b"inf", False),
     ("1e5", b"1e5x", False), ("0.5", b"0.5\xff", False), ("0.5", "٠.5".encode(), False), ("", b"\n", True), ("0x10", b"16", False)],
)  # fmt: skip
def test_with_a_tolerance_printed_numbers_are_compared_word_by_word(expected: str, found: bytes, same: bool) -> None:
    assert same_text(expected, found, 1e-6) is same


# --- answers


@given(st.text())
def test_any_answer_has_at_most_one_program(answer: str) -> None:
    for fence in ("first", "last"):
        found = program_of(answer, fence)  # type: ignore[arg-type]
        assert found is None or found in answer


@pytest.mark.parametrize(
    "line", ["~" * 50_000 + "`", "```" + " " * 50_000 + "`", "~~~" + "a" * 50_000 + "`", "`" * 50_000]
)
def test_a_hostile_fence_does_not_make_the_match_backtrack(line: str) -> None:
    begun = time.process_time()
    program_of(line + "\n" + "``` x\n" * 1000 + line, "last")
    assert time.process_time() - begun < 0.5


def test_the_option_fence_selects_the_first_block() -> None:
    answer = "```python\none\n```\n```\ntwo\n```\n```python\nopen"
    assert program_of(answer, "first") == "one\n"
    assert program_of(answer, "last") == "two\n"
    assert program_of("no fence", "last") == "no fence"
    assert program_of("```rust\nx\n```", "last") is None
    assert program_of("````python\na\n```\nb\n````", "last") == "a\n```\nb\n"


# --- in the service


def test_the_service_runs_the_verifier_and_exports_its_level(rig: Rig) -> None:
    try:
        level = make("python").info["sandbox"]  # type: ignore[attr-defined]
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    right, wrong = "def add(a, b): return a + b", "def add(a, b): return a"
    broker = rig.open([right, wrong], n=2, verifier="python", record=ADD)
    service = VerifierService(rig.config({"python": {"concurrency": 2}}), url=rig.url)
    with serving(service):
        until(lambda: ready(broker) == 1, 60, "both are judged")
    assert service.values["passed"] == 1
    labels = {"verifier": "python", "version": "2", "sandbox": level}
    assert service.registry.get_sample_value("sieve_verifier_info", labels) == 1

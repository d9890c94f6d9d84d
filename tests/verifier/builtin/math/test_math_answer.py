r"""Final answers: what is the same, what the record says, and whose fault it is when no verdict is reached."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.builtin.failed import Failed
from verifier.builtin.math.box import last_boxed
from verifier.builtin.math.grammar import Scalar, read
from verifier.builtin.math.spelling import tokens
from verifier.builtin.math.verifier import MathAnswer
from verifier.protocol import VerifierError, make

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathAnswer]:
    verifier = MathAnswer()
    yield verifier
    verifier.close()


def box(answer: str) -> str:
    return f"thus \\boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("gold", "answers"),
    [
        ("5", ["5", "x=5", "5.0", r"5\text{ cm}", "(5)", r"\text{5}", "+5", r"\frac{10}{2}", r"5\,"]),
        ("1000", ["1,000", "1{,}000", r"1\,000", r"1,\!000", r"1 \times 10^{3}"]),
        (r"\frac{3}{2}", ["1.5", "3/2", r"\dfrac{3}{2}", r"\tfrac32", r"1\frac{1}{2}", r"x = \frac{6}{4}"]),
        ("-2", ["- 2", "-2.0", r"\frac{-4}{2}", "−2"]),
        (r"50\%", [r"50\%", r"50 \text{ percent}", r"50.0\%"]),
        (r"90^\circ", [r"90^{\circ}", "90", "90°", r"90\text{ degrees}"]),
        (r"\text{(B)}", ["B", "(B)", r"\textbf{(B)}", r"\mathrm{B}"]),
        (r"\text{Friday}", ["Friday", r"\text{friday}"]),
        ("x^2+2x+1", ["(x+1)^2", "1+2x+x^2", "(1+x)(x+1)"]),
        (r"\frac{\sqrt{3}-1}{2}", [r"\frac{1}{\sqrt3+1}", r"\frac{\sqrt3}{2}-\frac12"]),
        (r"\{1,2\}", [r"\{2,1\}", "1, 2", r"\lbrace 2, 1 \rbrace"]),
        (r"(\frac12,\sqrt{2})", [r"(0.5, \frac{2}{\sqrt2})", r"\left(\frac{1}{2}, \sqrt{2}\right)"]),
        ("[1,2)", [r"\left[1, 2\right)"]),
        (r"[1,2]\cup[3,4]", [r"[3,4]\cup[1,2]"]),
        ("y=2x+1", ["y = 1+2x", "2x+1"]),
        ("x^2+y^2=1", ["y^2=1-x^2"]),
        ("x>3", ["3<x", r"(3,\infty)"]),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", [r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"]),
        (r"\emptyset", [r"\varnothing"]),
        ("2^{10}", ["1024", r"4^5"]),
        ("e^{x^2}", ["e^{x^2}", r"e^{x \cdot x}"]),
        (r"\binom{n}{2}", [r"\frac{n(n-1)}{2}"]),
    ],
)
def test_the_same_in_another_form_passes_and_is_one_answer(verifier: MathAnswer, gold: str, answers: list[str]) -> None:
    said = [verifier.judge({"answer": gold}, box(answer)) for answer in answers]
    assert [(answer, s.outcome, s.reason) for answer, s in zip(answers, said, strict=True)] == [
        (answer, "pass", "correct") for answer in answers
    ]
    assert len({s.answer for s in said}) == 1 and said[0].answer


def test_any_of_a_records_answers_will_do(verifier: MathAnswer) -> None:
    record = {"answer": ["1024", "2^{10}"]}
    assert verifier.judge(record, box("2^{10}")).answer == verifier.judge(record, box("1024")).answer == "1024"
    assert verifier.judge(record, box("1025")).outcome == "fail"


@pytest.mark.parametrize(
    "record",
    [
        {}, {"answer": 5}, {"answer": []}, {"answer": ["5", 5]}, {"answer": ["5"] * 17}, {"answer": "5", "question": 3},
        {"answer": ""}, {"answer": "\\boxed{"}, {"answer": "9^{9^{9^9}}"}, {"answer": "٥"},
        {"answer": r"\frac{0}{0}+x"}, {"answer": "x+)("},
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_an_error(verifier: MathAnswer, record: dict[str, object]) -> None:
    said = verifier.judge(record, box("x+1"))
    assert (said.outcome, said.reason) == ("error", "malformed_record"), said


@pytest.mark.parametrize(
    "text",
    [
        "-" * 390 + "5",
        r"\sqrt" * 70 + "5",
        "x^-" * 120 + "x",
        r"\frac" * 60 + "5" * 60,
        "{" * 29 + "x" + "}" * 29,
        "x!" * 150,
    ],
)
def test_an_expression_of_many_levels_is_judged(verifier: MathAnswer, text: str) -> None:
    said = verifier.judge({"answer": r"\sqrt{2}+x"}, box(text))
    assert said.outcome == "fail", said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.text(r"\{}()[]^_=,.;+-*/!0123456789xfracsqt ", max_size=40))
def test_no_text_makes_judging_raise_or_pass_by_chance(verifier: MathAnswer, text: str) -> None:
    said = verifier.judge({"answer": r"\sqrt{7} + z"}, box(text))
    assert said.reason in verifier.reasons
    assert said.outcome == "fail"


def number(text: str) -> Fraction | None:
    """The value of a written-out number."""
    shape = read(tokens(text))
    assert isinstance(shape, Scalar)
    return shape.number


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_every_way_to_write_a_number_has_one_value(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    texts = [f"{top}/{bottom}" if top >= 0 else f"-{-top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}"]
    assert [number(text) for text in texts] == [value] * 2
    assert number(f"{top:,}") == number(f"{top}.0") == Fraction(top)
    whole, rest = divmod(abs(top), bottom)
    if rest and whole:
        sign = "-" if top < 0 else ""
        assert number(f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}") == value


@given(st.text(r"\boxed{} 5", max_size=30))
def test_what_is_cut_out_is_balanced_and_the_last(text: str) -> None:
    try:
        inner = last_boxed(text)
    except Failed:
        return
    assert inner.replace(r"\{", "").replace(r"\}", "").count("{") <= inner.count("}") + text.count("\\")
    assert text.rfind("boxed") <= text.rfind(inner) or not inner


# --- whose fault


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "builtin/math/worker.py" in " ".join(child.cmdline())]


@pytest.fixture
def fresh() -> Iterator[tuple[MathAnswer, psutil.Process]]:
    """A verifier of its own, and its one worker."""
    before = {child.pid for child in children()}
    verifier = MathAnswer(cpu_seconds=0.1)
    assert verifier.judge({"answer": "x+1"}, box("1+x")).outcome == "pass"
    (worker,) = [child for child in children() if child.pid not in before]
    yield verifier, worker
    verifier.close()


def test_a_worker_killed_from_outside_is_an_error_and_the_next_answer_is_judged(
    fresh: tuple[MathAnswer, psutil.Process],
) -> None:
    verifier, worker = fresh
    worker.send_signal(signal.SIGKILL)
    said = verifier.judge({"answer": "x+1"}, box("1+x"))
    assert (said.outcome, said.reason) == ("error", "worker_died")
    assert verifier.judge({"answer": "x+1"}, box("1+x")).outcome == "pass"


def test_an_answer_that_uses_up_its_computing_time_fails_whatever_the_clock_says(
    fresh: tuple[MathAnswer, psutil.Process],
) -> None:
    verifier, worker = fresh
    # Equal, but only at 100,000 bits can that be seen.
    costly = r"\cdot(\sin^2\frac{99}{7}+\cos^2\frac{99}{7})" * 7
    said = verifier.judge({"answer": r"\sqrt{2}"}, box(rf"\sqrt{{2}}{costly}+10^{{-1500}}-10^{{-1500}}"))
    assert (said.outcome, said.reason) == ("fail", "too_expensive")
    worker.wait(5)
    assert verifier.judge({"answer": "x+1"}, box("1+x")).outcome == "pass"


@pytest.mark.slow
def test_a_worker_that_gets_no_cpu_is_an_error_and_not_a_wrong_answer(fresh: tuple[MathAnswer, psutil.Process]) -> None:
    verifier, worker = fresh
    worker.suspend()
    said = verifier.judge({"answer": "x+1"}, box("1+x"))
    assert (said.outcome, said.reason) == ("error", "stalled")
    assert not psutil.pid_exists(worker.pid)


def test_a_worker_sees_no_secrets_and_is_replaced_after_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIEVE_BROKER__URL", "redis://:sesame@nowhere")
    before = {child.pid for child in children()}
    verifier = MathAnswer(recycle=2)
    seen = set()
    for _ in range(5):
        assert verifier.judge({"answer": "x+1"}, box("1+x")).outcome == "pass"
        for child in children():
            if child.pid not in before:
                seen.add(child.pid)
                assert "sesame" not in str(child.environ())
    verifier.close()
    assert len(seen) >= 2
    deadline = time.monotonic() + 20  # a successor that was being started ends when it is ready
    while not {child.pid for child in children()} <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {child.pid for child in children()} <= before


def test_running_out_of_memory_is_never_read_as_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose memory ran short says so, and the question goes to a fresh one; then it is the answer's cost."""
    verifier = MathAnswer(memory_bytes=256 << 20, cpu_seconds=20.0)
    said = verifier.judge({"answer": r"\sqrt{2}"}, box("(" * 8 + "2" + "^{9999})" * 2 + "^{99})" * 1 + "^{9})" * 5))
    assert (said.outcome, said.reason) == ("fail", "too_expensive")
    assert verifier.judge({"answer": "x+1"}, box("1+x")).outcome == "pass"
    verifier.close()


def test_threads_compare_side_by_side(verifier: MathAnswer) -> None:
    said: list[str] = []

    def work(number: int) -> None:
        for k in range(5):
            right = (number + k) % 2 == 0
            outcome = verifier.judge(
                {"answer": f"x^2+{number}"}, box(f"{number}+x \\cdot x" if right else f"x^3+{number}")
            )
            said.append("as it should" if (outcome.outcome == "pass") is right else repr(outcome))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["as it should"] * 20


def test_workers_end_with_a_service_that_is_killed() -> None:
    code = (
        "import os, sys, time; from verifier.builtin.math.verifier import MathAnswer\n"
        "v = MathAnswer(); v.judge({'answer': 'x+1'}, r'\\boxed{1+x}'); print(os.getpid(), flush=True); time.sleep(60)"
    )
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ})
    assert service.stdout is not None
    service.stdout.readline()
    workers = psutil.Process(service.pid).children(recursive=True)
    assert workers
    service.kill()
    service.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VerifierError, match=r"pip install 'sieve-rl\[math\]'"):
        make("math")


@pytest.mark.parametrize("options", [{"cpu_seconds": 0}, {"memory_bytes": 1000}, {"recycle": 0}, {"speed": 1}])
def test_options_that_cannot_work_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(VerifierError, match="could not be made"):
        make("math", options)


def test_a_number_is_judged_in_microseconds(verifier: MathAnswer) -> None:
    begin = time.perf_counter()
    for k in range(500):
        verifier.judge({"answer": "7"}, box(str(k)))
    assert (time.perf_counter() - begin) / 500 < 2e-3

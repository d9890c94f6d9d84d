"""The look-up of verifiers, and the step from a judgement or an exception to one bounded verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import EX_USAGE
from broker.queue.wire import Completion, Finish, Prompt, Verdict, float32, int32, pack, unpack
from verifier import protocol as verdicts
from verifier.builtin.arithmetic import Arithmetic
from verifier.protocol import Judgement, VerifierError, known, make, register, verdict


class Told:
    """A verifier that returns or raises what it was made with."""

    name = "told"
    version = "3"
    reasons = frozenset({"yes", "no"})

    def __init__(self, says: Any = None, greeting: str = "") -> None:
        self.says, self.greeting = says, greeting

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        if isinstance(self.says, BaseException):
            raise self.says
        return self.says  # type: ignore[no-any-return]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def prompt() -> Prompt:
    return Prompt(index=0, text="?", tokens=int32([1]), verifier="told", record={"numbers": (1, 2), "target": 3})


def completion(text: str, finish: Finish = "stop") -> Completion:
    return Completion(
        group_id="0:0",
        lane="train",
        prompt=0,
        idx=0,
        n=1,
        tokens=int32([1, 2]),
        logprobs=float32([-0.5, -0.1]),
        spans=((0, 0, 2),),
        finish=finish,
        text=text,
    )


def judged(says: Any, text: str = "an  answer\n", finish: Finish = "stop") -> Verdict:
    found = verdict(Told(says), completion(text, finish), prompt())
    assert unpack(Verdict, pack(found)) == found
    assert math.isfinite(found.seconds)
    return found


@pytest.fixture(autouse=True)
def _forget_registrations() -> Iterator[None]:
    before = dict(verdicts._registered)
    yield
    verdicts._registered.clear()
    verdicts._registered.update(before)


# --- one judgement, one verdict


def test_a_verdict_carries_outcome_reason_detail_and_verifier() -> None:
    found = judged(Judgement("pass", "yes", "because", "canonical"))
    assert (found.outcome, found.reason, found.detail, found.answer) == ("pass", "yes", "because", "canonical")
    assert found.verifier == "told/3"
    assert judged(Judgement("fail", "no", "it is not")).outcome == "fail"
    assert judged(Judgement("error", "no", "no tool")).outcome == "error"


def test_a_truncated_answer_fails_without_being_judged_even_if_it_is_right() -> None:
    found = judged(RuntimeError("must not be asked"), finish="length")
    assert (found.outcome, found.reason) == ("fail", "truncated")
    right = verdict(Arithmetic(), completion("1+2", "length"), prompt())
    assert (right.outcome, right.reason, right.answer) == ("fail", "truncated", "")
    assert verdict(Arithmetic(), completion("2+1"), prompt()).answer == "1+2"


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("x"),
        RecursionError(),
        MemoryError(),
        SystemExit(3),
        Unprintable(),
        KeyError("\ud800"),
        AssertionError("a" * 100_000),
        TimeoutError("tool"),
        StopIteration(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
)
def test_an_exception_in_a_verifier_is_an_error_never_a_wrong_answer(raised: BaseException) -> None:
    found = judged(raised)
    assert (found.outcome, found.reason, found.answer) == ("error", "crashed", "")
    assert type(raised).__name__ in found.detail
    assert len(found.detail) <= 2000


def test_the_detail_of_a_crash_names_file_and_line() -> None:
    assert "(test_protocol.py:" in judged(ValueError("x")).detail


@pytest.mark.parametrize(
    "says",
    [
        None,
        True,
        1,
        "pass",
        ("pass", "yes"),
        Judgement("maybe", "yes"),
        Judgement("pass", "unlisted"),  # type: ignore[arg-type]
        Judgement("pass", ""),
        Judgement("pass", ["yes"]),
        Judgement([], "yes"),
        Judgement("pass", "yes", None),  # type: ignore[arg-type]
        Judgement("pass", "yes", "", b"x"),
        Judgement("pass", "truncated"),  # type: ignore[arg-type]
    ],
)
def test_a_judgement_outside_the_verifiers_own_list_is_an_error(says: Any) -> None:
    found = judged(says)
    assert (found.outcome, found.reason) == ("error", "invalid_judgement")


def test_a_pass_without_canonical_answer_is_its_text_up_to_white_space() -> None:
    assert judged(Judgement("pass", "yes")).answer == "an answer"
    assert judged(Judgement("fail", "no", "", "leaked")).answer == ""


def test_long_answers_stay_different_from_each_other() -> None:
    one, other = (judged(Judgement("pass", "yes", "", "x" * 5000 + end)).answer for end in "ab")
    assert one != other
    assert len(one) < 100


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(st.characters(), max_size=3000), st.sampled_from(["pass", "fail", "error"]))
def test_any_text_from_a_verifier_can_be_sent(detail: str, answer: str, outcome: Any) -> None:
    judged(Judgement(outcome, "yes", detail + "\udfff", answer + "\ud800"))


# --- look-up


def test_arithmetic_is_built_in() -> None:
    assert isinstance(make("arithmetic"), Arithmetic)
    assert "arithmetic" in known()


def test_a_verifier_registered_by_code_is_made_with_its_options() -> None:
    register("told", Told)
    register("told", Told)
    assert "told" in known()
    found = make("told", {"greeting": "hello"})
    assert isinstance(found, Told)
    assert found.greeting == "hello"


def test_a_verifier_named_by_its_factory_needs_no_registration() -> None:
    assert isinstance(make("told", factory=f"{__name__}:Told"), Told)


def test_an_installed_entry_point_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "one", "entry", "entry_verifier_one:Entry")
    assert "entry" in known()
    assert make("entry").judge({}, "x").outcome == "pass"


def test_a_name_that_two_distributions_define_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "one", "entry", "entry_verifier_one:Entry")
    install(tmp_path, monkeypatch, "two", "entry", "entry_verifier_two:Entry")
    with pytest.raises(VerifierError, match=r"defined 2 times.*uninstall"):
        make("entry")


def test_a_built_in_or_registered_verifier_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "one", "arithmetic", "entry_verifier_one:Entry")
    assert isinstance(make("arithmetic"), Arithmetic)
    with pytest.raises(VerifierError, match="exists already"):
        register("arithmetic", Told)
    register("told", Told)
    with pytest.raises(VerifierError, match="exists already"):
        register("told", Arithmetic)


def test_an_unknown_name_names_the_nearest_known_one() -> None:
    with pytest.raises(VerifierError, match="did you mean 'arithmetic'") as caught:
        make("arithmetics")
    assert caught.value.exit_code == EX_USAGE


@pytest.mark.parametrize("name", ["", "Told", "9lives", "a" * 33, "a b", "told\n"])
def test_an_unusable_name_is_refused(name: str) -> None:
    with pytest.raises(VerifierError, match="use a lower-case letter"):
        register(name, Told)


@pytest.mark.parametrize(
    ("factory", "options", "complaint"),
    [
        ("told", {}, "not of the form"),
        ("no.such.module:Told", {}, "cannot import"),
        ("verifier.protocol:Nothing", {}, "cannot import"),
        ("verifier.protocol:ENTRY_POINTS", {}, "not a class or function"),
        (f"{__name__}:Told", {"wrong": 1}, "unexpected keyword argument 'wrong'"),
        ("verifier.builtin.arithmetic:Arithmetic", {}, "Arithmetic.name is 'arithmetic'"),
        ("builtins:dict", {}, "name must be a str"),
    ],
)
def test_a_factory_that_cannot_serve_is_refused_with_the_reason(
    factory: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(VerifierError, match=complaint):
        make("told", options, factory=factory)


@pytest.mark.parametrize(
    ("attribute", "value", "complaint"),
    [
        ("version", "", "version"),
        ("version", "v" * 80, "version"),
        ("version", 1, "version must be a str"),
        ("reasons", {"yes"}, "reasons must be a frozenset"),
        ("reasons", frozenset({"Not A Code"}), "badly written"),
        ("reasons", frozenset(f"r{i}" for i in range(65)), "at most 64"),
        ("judge", None, "no method judge"),
    ],
)
def test_an_object_that_is_not_a_verifier_is_refused(attribute: str, value: Any, complaint: str) -> None:
    register("told", type("Bad", (Told,), {attribute: value}))
    with pytest.raises(VerifierError, match=complaint):
        make("told")


def install(where: Path, monkeypatch: pytest.MonkeyPatch, dist: str, name: str, target: str) -> None:
    """Install a distribution as pip would: a module, and metadata with an entry point."""
    module = target.split(":")[0]
    site = where / dist
    info = site / f"{dist}_dist-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{verdicts.ENTRY_POINTS}]\n{name} = {target}\n")
    (site / f"{module}.py").write_text(
        "from verifier.protocol import Judgement\n\n\nclass Entry:\n"
        f"    name, version, reasons = {name!r}, '1', frozenset({{'yes'}})\n\n"
        "    def judge(self, record, answer):\n        return Judgement('pass', 'yes')\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, module, raising=False)

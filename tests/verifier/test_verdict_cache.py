"""Equal answers are judged once: what makes two judgements equal, and the cache as the service uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.verifier.verifier_rig import Obedient, Rig, obedient, ready, serving, until
from verifier.builtin.arithmetic import Arithmetic
from verifier.service import VerifierService
from verifier.verdict_cache import Content

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)
CONTENT = Content(Arithmetic(), {}, None)


def as_the_wire_does(value: Any) -> Any:
    """Lists arrive as tuples, and mappings in any order."""
    if isinstance(value, list):
        return tuple(as_the_wire_does(item) for item in value)
    if isinstance(value, dict):
        return {key: as_the_wire_does(value[key]) for key in reversed(value)}
    return value


@given(RECORDS, st.text(max_size=8))
def test_the_wire_does_not_change_the_hash(record: dict[str, Any], answer: str) -> None:
    assert CONTENT.key(record, answer) == CONTENT.key(as_the_wire_does(record), answer)


@given(RECORDS, RECORDS, st.text(max_size=4), st.text(max_size=4))
def test_different_questions_and_answers_have_different_hashes(
    one: dict[str, Any], other: dict[str, Any], first: str, second: str
) -> None:
    same = repr(_typed(one)) == repr(_typed(other)) and first == second
    assert (CONTENT.key(one, first) == CONTENT.key(other, second)) is same


def _typed(value: Any) -> Any:
    """1, 1.0 and True are equal to Python and different here."""
    if isinstance(value, dict):
        return sorted((key, repr(_typed(item))) for key, item in value.items())
    return [_typed(item) for item in value] if isinstance(value, list) else (type(value).__name__, value)


def test_lone_surrogates_and_parts_that_run_together_are_told_apart() -> None:
    assert CONTENT.key({}, "\ud800") != CONTENT.key({}, "\ud801")
    assert CONTENT.key({"a": "b"}, "c") != CONTENT.key({"a": "bc"}, "")
    assert CONTENT.key({"a": b"\x01"}, "") != CONTENT.key({"a": {"b": "01"}}, "")


def test_everything_that_decides_is_in_the_hash() -> None:
    class Newer(Arithmetic):
        version = "2"

    class WithTool(Arithmetic):
        fingerprint = "lean 4.28"

    askers = [
        CONTENT,
        Content(Newer(), {}, None),
        Content(WithTool(), {}, None),
        Content(Arithmetic(), {"limit": 3}, None),
        Content(Arithmetic(), {}, "mine:Arithmetic"),
        Content(Obedient(), {}, None),
    ]
    assert len({asker.key({"a": 1}, "1") for asker in askers}) == len(askers)


def times_judged(trace: Path) -> list[str]:
    return sorted(line.split(" ", 1)[1] for line in trace.read_text().splitlines())


def test_equal_answers_are_judged_once_over_services_and_runs(rig: Rig, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    serve = obedient(options={"trace": str(trace)}, cache=True)
    for name in ("first", "second"):
        rig.name = name
        broker = rig.open(["pass same", "fail same", "length:pass same", "pass other"], n=4)
        service = VerifierService(rig.config(serve), url=rig.url)
        with serving(service):
            until(lambda b=broker: ready(b) == 1, 20, "the group is judged")
        (group,) = broker.groups(broker.lease(rig.epoch, 1, 1) or [])
        said = sorted((m.completion.text, m.verdict.outcome, m.verdict.reason, m.verdict.answer) for m in group.members)
        assert said == [
            ("fail same", "fail", "told", ""),
            ("pass other", "pass", "told", "pass other"),
            ("pass same", "fail", "truncated", ""),  # its text is known to be right: it is truncated all the same
            ("pass same", "pass", "told", "pass same"),
        ]
    assert times_judged(trace) == ["fail same", "pass other", "pass same"]
    assert broker.cache_counts()["hits:obedient"] == 3


def test_errors_are_tried_again_and_never_remembered(rig: Rig, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    broker = rig.open(["error", "crash"], n=2)
    service = VerifierService(rig.config(obedient(options={"trace": str(trace)}, cache=True)), url=rig.url)
    with serving(service):
        until(lambda: len(broker.dead_letters()) == 2, 20, "both are dead letters")
    assert times_judged(trace) == ["crash"] * 3 + ["error"] * 3
    assert broker.cache_counts().get("bytes", 0) == 0


def test_a_fast_verifier_does_not_ask_and_a_slow_one_does_unless_told(rig: Rig) -> None:
    def stored(seconds: float, **settings: Any) -> int:
        rig.name += "x"
        broker = rig.open([f"pass {seconds} {i}" for i in range(6)])
        verifier = settings.pop("verifier", {})
        service = VerifierService(
            rig.config(obedient(options={"seconds": seconds}, **settings), **verifier), url=rig.url
        )
        before = broker.cache_counts().get("bytes", 0)
        with serving(service):
            until(lambda: ready(broker) == 6, 20, "all groups are judged")
        return broker.cache_counts().get("bytes", 0) - before

    assert stored(0.0) == 0
    assert stored(0.02) > 0
    assert stored(0.021, cache=False) == 0
    assert stored(0.022, cache=True, verifier={"cache_bytes": 0}) == 0
    assert stored(0.0, cache=True) > 0

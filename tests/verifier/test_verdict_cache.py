"""The verdict cache: which judgements share a key, and how the service uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.verifier.verifier_rig import Obedient, Rig, obedient, ready, serving, until
from verifier.builtin.arithmetic import Arithmetic
from verifier.service import VerifierService
from verifier.verdict_cache import JudgementKey

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
KEY = JudgementKey(Arithmetic(), {}, None)


def as_the_wire_does(value: Any) -> Any:
    """`value` as it may arrive: lists as tuples, mappings in another order."""
    if isinstance(value, list):
        return tuple(as_the_wire_does(item) for item in value)
    if isinstance(value, dict):
        return {key: as_the_wire_does(value[key]) for key in reversed(value)}
    return value


@given(RECORDS, st.text(max_size=8))
def test_the_wire_does_not_change_the_key(record: dict[str, Any], answer: str) -> None:
    assert KEY.digest(record, answer) == KEY.digest(as_the_wire_does(record), answer)


@given(RECORDS, RECORDS, st.text(max_size=4), st.text(max_size=4))
def test_different_records_and_answers_have_different_keys(
    one: dict[str, Any], other: dict[str, Any], first: str, second: str
) -> None:
    same = repr(_typed(one)) == repr(_typed(other)) and first == second
    assert (KEY.digest(one, first) == KEY.digest(other, second)) is same


def _typed(value: Any) -> Any:
    """`value` with types: 1, 1.0 and True are equal in Python but have different keys."""
    if isinstance(value, dict):
        return sorted((key, repr(_typed(item))) for key, item in value.items())
    return [_typed(item) for item in value] if isinstance(value, list) else (type(value).__name__, value)


def test_lone_surrogates_and_parts_that_run_together_are_told_apart() -> None:
    assert KEY.digest({}, "\ud800") != KEY.digest({}, "\ud801")
    assert KEY.digest({"a": "b"}, "c") != KEY.digest({"a": "bc"}, "")
    assert KEY.digest({"a": b"\x01"}, "") != KEY.digest({"a": {"b": "01"}}, "")


def test_everything_that_decides_a_verdict_is_in_the_key() -> None:
    class Newer(Arithmetic):
        version = "2"

    class WithTool(Arithmetic):
        fingerprint = "lean 4.28"

    keys = [
        KEY,
        JudgementKey(Newer(), {}, None),
        JudgementKey(WithTool(), {}, None),
        JudgementKey(Arithmetic(), {"limit": 3}, None),
        JudgementKey(Arithmetic(), {}, "mine:Arithmetic"),
        JudgementKey(Obedient(), {}, None),
    ]
    assert len({key.digest({"a": 1}, "1") for key in keys}) == len(keys)


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
            ("pass same", "fail", "truncated", ""),  # truncated, though the cache knows its text to be right
            ("pass same", "pass", "told", "pass same"),
        ]
    assert times_judged(trace) == ["fail same", "pass other", "pass same"]
    assert broker.cache_counts()["hits:obedient"] == 3


def test_errors_are_retried_and_never_cached(rig: Rig, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    broker = rig.open(["error", "crash"], n=2)
    service = VerifierService(rig.config(obedient(options={"trace": str(trace)}, cache=True)), url=rig.url)
    with serving(service):
        until(lambda: len(broker.dead_letters()) == 2, 20, "both are dead letters")
    assert times_judged(trace) == ["crash"] * 3 + ["error"] * 3
    assert broker.cache_counts().get("bytes", 0) == 0


def test_only_slow_verifiers_use_the_cache_unless_the_settings_say_otherwise(rig: Rig) -> None:
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

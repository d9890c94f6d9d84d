"""The settings of the verifying service, and the number of completions that a process holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from verifier.pool import share
from verifier.settings import VerifierSettings


def test_by_default_one_process_serves_arithmetic() -> None:
    settings = VerifierSettings()
    assert list(settings.serve) == ["arithmetic"]
    assert settings.serve["arithmetic"].replicas == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"serve": {}}, "at least 1"),
        ({"serve": {"Arithmetic": {}}}, "pattern"),
        ({"serve": {"arithmetic": {"concurrency": 0}}}, "greater than or equal to 1"),
        ({"serve": {"arithmetic": {"concurrency": 8, "batch": 4}}}, "4 threads would never get work"),
        ({"serve": {"arithmetic": {"factory": "no colon"}}}, "pattern"),
        ({"serve": {"arithmetic": {"deadline_seconds": 0}}}, "greater than 0"),
        ({"serve": {"arithmetic": {"replica": 2}}}, "Extra inputs"),
        ({"names": ["arithmetic"]}, "Extra inputs"),
    ],
)
def test_an_impossible_setting_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        VerifierSettings.model_validate(settings)


@given(
    st.integers(1, 64),
    st.integers(0, 4096),
    st.floats(0, 60),
    st.one_of(st.none(), st.floats(0, 1e4)),
)
def test_a_process_holds_at_least_its_threads_and_at_most_its_batch(
    threads: int, extra: int, prefetch: float, seconds: float | None
) -> None:
    batch = threads + extra
    held = share(threads, batch, prefetch, seconds)
    assert threads <= held <= batch
    if seconds is None or seconds > prefetch:
        assert held == threads
    if seconds:
        ahead = held - threads
        assert ahead * seconds / threads <= prefetch * (1 + 1e-9)


def test_a_slow_verifier_holds_one_completion_a_thread_and_a_fast_one_a_whole_batch() -> None:
    assert share(4, 256, 0.2, 3.0) == 4
    assert share(1, 256, 0.2, 20e-6) == 256
    assert share(1, 256, 0.2, None) == 1

"""When a service is started again, and when the run gives up: the policy without any process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import EX_DATA, EX_INTERNAL, EX_MISMATCH, EX_TEMPORARY, EX_UNAVAILABLE, EX_USAGE
from deploy.config.settings import LaunchSettings
from deploy.launch.restarts import KILLED, LONGEST_PAUSE, Restarts

SETTINGS = LaunchSettings(restart_limit=3, restart_seconds=0.5, healthy_seconds=30)


@pytest.mark.parametrize("code", [EX_USAGE, EX_MISMATCH])
def test_a_wrong_setting_and_samplers_with_other_weights_end_the_run_at_once(code: int) -> None:
    assert Restarts(SETTINGS).ended(code, 1.0, False) is None
    assert Restarts(SETTINGS).ended(code, 1e6, True) is None


@pytest.mark.parametrize("code", [EX_DATA, EX_INTERNAL])
def test_a_lasting_failure_ends_the_run_the_second_time_in_a_row(code: int) -> None:
    restarts = Restarts(SETTINGS)
    assert restarts.ended(code, 1.0, False) is not None
    assert restarts.ended(code, 1.0, False) is None


@pytest.mark.parametrize("code", [EX_UNAVAILABLE, EX_TEMPORARY, KILLED])
def test_temporary_failures_at_start_are_bounded(code: int) -> None:
    restarts = Restarts(SETTINGS)
    pauses = [restarts.ended(code, 1.0, False) for _ in range(4)]
    assert pauses == [0.5, 1.0, 2.0, None]


def test_kills_of_a_service_that_works_never_end_the_run() -> None:
    restarts = Restarts(SETTINGS)
    assert all(restarts.ended(KILLED, 1.0, True) is not None for _ in range(100))
    assert restarts.reasons == {"killed": 100}


@pytest.mark.parametrize("code", [KILLED, EX_USAGE, EX_INTERNAL, EX_UNAVAILABLE, 137])
def test_no_end_of_a_verifier_that_got_past_its_set_up_ends_the_run(code: int) -> None:
    restarts = Restarts(SETTINGS, expendable=True)
    assert all(restarts.ended(code, 1.0, True) == SETTINGS.restart_seconds for _ in range(100))
    failing = Restarts(SETTINGS, expendable=True)
    assert None in [failing.ended(code, 1.0, False) for _ in range(4)]


def test_a_long_life_forgets_earlier_failures() -> None:
    restarts = Restarts(SETTINGS)
    for _ in range(50):
        assert restarts.ended(EX_INTERNAL, 31.0, True) == 0.5


@given(st.lists(st.tuples(st.sampled_from([KILLED, 0, 64, 65, 69, 70, 75]), st.floats(0, 100), st.booleans())))
def test_pauses_are_positive_bounded_and_every_end_is_counted(ends: list[tuple[int, float, bool]]) -> None:
    restarts = Restarts(SETTINGS)
    for count, (code, lived, worked) in enumerate(ends, 1):
        pause = restarts.ended(code, lived, worked)
        assert pause is None or SETTINGS.restart_seconds <= pause <= LONGEST_PAUSE
        assert sum(restarts.reasons.values()) == count

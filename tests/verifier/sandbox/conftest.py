"""Fixtures of the sandbox's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from verifier.sandbox import levels
from verifier.sandbox.limits import SandboxUnavailable
from verifier.sandbox.sandbox import Sandbox


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox at each level that this machine has."""
    try:
        found = levels.open_sandbox(request.param)
    except SandboxUnavailable as error:
        pytest.skip(f"{request.param}: {error}")
    with found:
        yield found

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verifier.verifier_rig import Rig


@pytest.fixture
def rig(redis_url: str, tmp_path: Path) -> Rig:
    return Rig(redis_url, tmp_path, "verifying", lease_seconds=2.0, attempts=3)

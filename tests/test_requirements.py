"""The locked requirements: what images install is what the tests run on, each file by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = {"python_version": "3.11", "platform_system": "Linux", "platform_machine": "x86_64"}


def locked(name: str) -> dict[str, str]:
    """Package → version; every one with at least one hash."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements" / f"{name}.txt").read_text().strip()):
        first, *hashes = entry.split("\\\n")
        package, version = first.split(";")[0].strip().split("==")
        assert hashes and all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", line) for line in hashes), package
        found[canonicalize_name(package)] = version
    return found


def wanted(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate(ENVIRONMENT)]


@pytest.mark.parametrize(("name", "extras"), [("run", ("math", "parquet", "datasets")), ("vllm", ("vllm", "openai"))])
def test_a_lock_holds_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    versions = locked(name)
    for one in wanted(*extras):
        assert one.specifier.contains(versions[canonicalize_name(one.name)]), f"{one}: run `make lock`"


def test_the_lock_has_the_versions_that_the_tests_run_on() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    different = {name: version for name, version in locked("run").items() if pinned.get(name, version) != version}
    assert different == {}, "run `make lock`"


def test_no_index_is_named() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        assert not re.search(r"://|^--(?!hash)", path.read_text(), re.MULTILINE)
        assert locked(path.stem)


def test_actions_of_others_are_pinned_to_a_commit() -> None:
    for path in sorted((ROOT / ".github").rglob("*.y*ml")):
        for used in re.findall(r"uses:\s*([^\s#]+)", path.read_text()):
            assert used.startswith("./") or re.search(r"@[0-9a-f]{40}$", used), f"{path.name}: {used}"

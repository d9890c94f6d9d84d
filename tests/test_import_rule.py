"""The rooms and what they may know of each other: broker ← {actor, verifier, learner} ← deploy; nothing sideways.

Read from the source (every import statement, also those inside functions) and from what a fresh process really loads.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"broker", "actor", "verifier", "learner", "deploy"}
OUTSIDE = {"tests", "examples", "benchmarks", "docs"}
HEAVY = {"torch", "vllm", "ray", "transformers"}
FORBIDDEN = {
    "broker": (ROOMS - {"broker"}) | HEAVY,
    "verifier": (ROOMS - {"broker", "verifier"}) | HEAVY,
    "actor": ROOMS - {"broker", "actor"},
    "learner": ROOMS - {"broker", "learner"},
    "deploy": set(),
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a source file imports by absolute name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module is not None:
                yield node.lineno, node.module
            elif node.level > 1:
                yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def offences(room: str, source: str) -> list[tuple[int, str]]:
    """The imports of `source` that `room` may not have; a relative import over more than its own folder is one too."""
    forbidden = FORBIDDEN[room] | OUTSIDE
    return [
        (line, name) for line, name in imported(source) if name.split(".")[0] in forbidden or name.startswith("...")
    ]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_it_may_know(room: str) -> None:
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert files, f"{room}/ holds no Python file"
    found = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in files
        for line, name in offences(room, path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("broker", "import torch"),
        ("broker", "def late():\n    from ray import remote"),
        ("broker", "import actor.service as service"),
        ("verifier", "from learner.objective import alpha"),
        ("verifier", "import numpy, torch.nn"),
        ("actor", "from verifier import settings"),
        ("actor", "import importlib\nimportlib.import_module('learner.service')"),
        ("learner", "__import__('actor')"),
        ("learner", "if True:\n    import deploy.config"),
        ("deploy", "from tests.broker import builders"),
        ("actor", "from ...learner import z"),
    ],
)
def test_every_way_around_the_rule_is_seen(room: str, source: str) -> None:
    assert len(offences(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("broker", "from broker.wire import Ticket\nimport redis, numpy"),
        ("actor", "import torch\nfrom broker.client import Broker\nfrom . import engine"),
        ("learner", "from broker import settings\nimport torch.distributed"),
        ("deploy", "import ray\nfrom learner.service import Learner\nfrom actor import service"),
        ("broker", "import rayon_like_name, torchless"),
    ],
)
def test_what_is_allowed_passes(room: str, source: str) -> None:
    assert offences(room, source) == []


LOADS = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), name + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("room", ["broker", "verifier"])
def test_a_fresh_process_loads_the_whole_room_without_anything_heavy(room: str) -> None:
    """What third parties pull in counts too: a verifier pod must start in well under a second."""
    done = subprocess.run(
        [sys.executable, "-c", LOADS, room], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert room in loaded
    assert loaded & (HEAVY | (ROOMS - {"broker", room})) == set()


def test_the_service_base_loads_without_anything_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, broker.runtime.service; print(*sys.modules)"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=True,
    )  # fmt: skip
    assert {name.split(".")[0] for name in done.stdout.split()} & HEAVY == set()

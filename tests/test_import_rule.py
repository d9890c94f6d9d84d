"""The packages and what each may import: broker ← {actor, verifier, learner} ← deploy, and one order inside each.

Read from the source (every import statement, also those inside functions and for type checkers only) and from what a
fresh process really loads.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
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

MAY_IMPORT = {
    "broker": {
        "printable": "",
        "plain_files": "",
        "errors": "printable",
        "settings": "",
        "extensions": "errors",
        "model_files": "plain_files",
        "queue": "errors settings printable",
        "weights": "errors settings plain_files queue",
        "runtime": "errors settings printable plain_files queue",
    },
    "actor": {
        "engine": "",
        "metrics": "",
        "weights": "engine metrics",
        "engines.tokenizer": "engine",
        "engines.torch": "engine weights engines.tokenizer",
        "engines.vllm": "engine weights engines.tokenizer",
        "engines.openai": "engine weights engines.tokenizer",
        "settings": "engines.vllm engines.openai",
        "engines.factory": "engine weights engines.tokenizer engines.torch engines.vllm engines.openai settings",
        "service": "engine metrics weights engines.factory settings",
    },
    "verifier": {
        "sandbox": "",
        "settings": "",
        "protocol": "",
        "helper_process": "",
        "builtin": "sandbox protocol helper_process",  # each below it for itself: see the test of neighbours
        "exposure": "protocol",
        "metrics": "protocol",
        "verdict_cache": "settings protocol",
        "pool": "protocol",
        "service": "settings protocol exposure metrics verdict_cache pool",
    },
    "learner": {
        "ranks": "",
        "difficulty": "",
        "step_record": "",
        "data": "",
        "batch": "ranks data",
        "model": "ranks data batch",
        "objective": "difficulty",
        "train.partition": "",
        "settings": "objective train.partition",
        "train": "ranks batch model objective settings train.partition",
        "weights": "ranks batch model settings step_record",
        "epoch_files": "",
        "resumption": "",
        "evaluation": "difficulty epoch_files",
        "metrics": "ranks difficulty step_record objective train train.partition",
        "start": "ranks data batch model objective train train.partition settings resumption",
        "takeover": "epoch_files resumption start settings",
        "service": "ranks step_record data batch model objective train weights evaluation epoch_files metrics settings "
        "start takeover",
    },
    "deploy": {
        "config": "",
        "rundir": "config",
        "observe": "config rundir",
        "reports": "config rundir",
        "launch": "config rundir observe reports",
        "sweeps": "config rundir observe reports launch",
        "api": "config rundir reports sweeps",
        "cli": "config rundir observe reports launch sweeps",
    },
}
"""Per package: each of its folders and modules, and which others of the package it may import. A folder may import from
itself; a module reached by a longer name than its folder's is a unit of its own. `__init__.py` files import nothing."""
NEIGHBOURS = tuple(f"verifier.builtin.{name}" for name in ("arithmetic", "math", "python", "lean"))
"""Units inside one folder that never import each other."""


def unit(name: str) -> str:
    """The unit of MAY_IMPORT that the module `name` (`package.…`) belongs to: the longest of its package that fits."""
    room, _, rest = name.partition(".")
    found = [one for one in MAY_IMPORT[room] if rest == one or rest.startswith(f"{one}.")]
    assert found, f"{name} belongs to no unit of MAY_IMPORT[{room!r}]: put it into a folder, or add it to the table"
    return max(found, key=len)


def modules() -> dict[str, Path]:
    """Dotted name → file of every module of the packages."""
    files = [path for room in sorted(ROOMS) for path in sorted((REPOSITORY / room).rglob("*.py"))]
    return {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in files}


@cache
def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import statement of a file, those inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def own_imports(path: Path, known: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a module of ours, `from package import module` included."""
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module is not None:
            names = [full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names]
        else:
            continue
        for name in names:
            if name in known:
                yield node.lineno, name


def against_the_order(importer: str, imported: str) -> bool:
    """Whether a module of a package may not import another one of the same package."""
    room = importer.partition(".")[0]
    ours, theirs = unit(importer), unit(imported)
    sides = [
        next((one for one in NEIGHBOURS if f"{name}.".startswith(f"{one}.")), None) for name in (importer, imported)
    ]
    if None not in sides and sides[0] != sides[1]:
        return True
    return ours != theirs and theirs not in MAY_IMPORT[room][ours].split()


def test_inside_a_package_imports_follow_one_order() -> None:
    known = modules()
    found = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for importer, path in known.items()
        if path.name not in ("__init__.py", "__main__.py")
        for line, name in own_imports(path, known)
        if name.partition(".")[0] == importer.partition(".")[0] and against_the_order(importer, name)
    ]
    assert found == []


def test_the_order_has_no_circle() -> None:
    """Neither between units nor between modules, imports inside functions included."""
    known = modules()
    graphs: list[dict[str, set[str]]] = [
        {name: set(below.split()) for name, below in table.items()} for table in MAY_IMPORT.values()
    ]
    graphs.append({name: {other for _, other in own_imports(path, known)} for name, path in known.items()})
    for graph in graphs:
        tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


PACKAGES = [path for room in sorted(ROOMS) for path in sorted((REPOSITORY / room).rglob("__init__.py"))]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.relative_to(REPOSITORY)))
def test_a_package_imports_nothing_by_itself_and_says_what_it_holds(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    assert len(tree.body) == 1 and "may import" in said.lower() and "never" in said.lower()


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("broker.queue.wire", "broker.weights.store"),
        ("broker.weights.cache", "broker.runtime.service"),
        ("actor.engines.torch.engine", "actor.engines.vllm.engine"),
        ("actor.weights.checks", "actor.engines.torch.engine"),
        ("actor.engine", "actor.settings"),
        ("verifier.sandbox.sandbox", "verifier.protocol"),
        ("verifier.service", "verifier.builtin.arithmetic"),
        ("verifier.builtin.lean.verifier", "verifier.builtin.python.verifier"),
        ("learner.objective.grpo", "learner.train.step"),
        ("learner.model.model", "learner.objective.registry"),
        ("learner.train.partition", "learner.settings"),
        ("deploy.config.tree", "deploy.launch.launcher"),
        ("deploy.reports.report", "deploy.observe.snapshot"),
    ],
)
def test_an_import_against_the_order_is_seen(importer: str, imported: str) -> None:
    assert against_the_order(importer, imported)


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
        ("actor", "import torch\nfrom broker.queue.actor_client import ActorClient\nfrom . import engine"),
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

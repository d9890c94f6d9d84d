"""No line of the project lets a file bring code: every loader that could is told not to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.settings import DataSettings
from learner.data.rows import DataUnusable, rows

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("broker", "actor", "verifier", "learner", "deploy", "examples", "benchmarks", "docs/generators")
REQUIRED = {
    "from_pretrained": {"trust_remote_code": False},
    "from_config": {"trust_remote_code": False},
    "transformers.pipeline": {"trust_remote_code": False},
    "torch.load": {"weights_only": True},
}
"""Loaders, and the arguments without which they may run what a file names."""
FORBIDDEN = {
    "cloudpickle.loads", "dcp.load", "dill.loads", "jinja2.Environment", "jinja2.Template", "joblib.load",
    "marshal.loads", "np.load", "numpy.load", "pandas.read_pickle", "pickle.Unpickler", "pickle.load",
    "pickle.loads", "shelve.open", "state_dict_loader.load", "torch.jit.load", "yaml.full_load", "yaml.load",
    "yaml.unsafe_load",
}  # fmt: skip
"""Loaders that do. Those that this project has closed itself are named with their file."""
CLOSED = {
    ("yaml.load", "deploy/config/yaml_text.py"),  # with a loader of safe YAML
    ("state_dict_loader.load", "learner/model/stored_tensors.py"),  # with a reader and a planner of data only
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(file, dotted name, call) of every call in the project."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield str(path.relative_to(ROOT)), ast.unparse(node.func), node


def test_every_loader_is_told_to_run_nothing() -> None:
    seen: set[str] = set()
    for file, name, call in calls():
        for loader, wanted in REQUIRED.items():
            if name == loader or ("." not in loader and name.endswith(f".{loader}")):
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                for argument, value in wanted.items():
                    assert given.get(argument) == str(value), f"{file}:{call.lineno}: {name} without {argument}={value}"
                seen.add(loader)
    assert {"from_pretrained", "torch.load"} <= seen


def test_no_loader_that_runs_code_is_called() -> None:
    found = {(name, file) for file, name, _ in calls() if name in FORBIDDEN}
    assert found == CLOSED


def test_vllm_is_told_so_whatever_the_configuration_says() -> None:
    from actor.engines.vllm import arguments

    assert "trust_remote_code" in arguments.OWNED
    tree = ast.parse((ROOT / "actor/engines/vllm/arguments.py").read_text(encoding="utf-8"))
    pairs = [
        (key.value, ast.unparse(value))
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
    ]
    assert ("trust_remote_code", "False") in pairs


def test_a_set_of_prompts_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataUnusable, match="scripts are no longer supported"):
        list(rows("datasets:x:train", DataSettings(train="datasets:x:train")))
    assert not (tmp_path / "ran").exists()

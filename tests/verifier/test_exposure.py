"""A verifier whose programs could read the run, its prompts or its model does not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import EX_USAGE
from tests.verifier.verifier_rig import Obedient, Rig
from verifier.exposure import check_exposure
from verifier.protocol import VerifierError
from verifier.sandbox.readable import Readable, resolve
from verifier.service import VerifierService


class Running(Obedient):
    """A verifier that runs programs which can read `readable`."""

    def __init__(self, readable: Readable) -> None:
        super().__init__()
        self.readable = readable


@pytest.mark.parametrize("private", ["run", "prompts", "model"])
def test_what_lies_in_a_readable_tree_is_named_with_the_tree(rig: Rig, tmp_path: Path, private: str) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for folder in (tree, outside):
        folder.mkdir()
    (tmp_path / "link").symlink_to(tree)  # a link does not hide it
    where = {name: tmp_path / "link" if name == private else outside for name in ("run", "prompts", "model")}
    config = rig.config({"arithmetic": {}})
    config = config.model_copy(
        update={
            "run": config.run.model_copy(update={"directory": where["run"]}),
            "data": config.data.model_copy(update={"train": where["prompts"] / "train.jsonl"}),
            "model": config.model.model_copy(update={"path": where["model"] / "model"}),
        }
    )
    with pytest.raises(VerifierError, match=rf"{private}.*they may read {tree}"):
        check_exposure(Running(resolve([str(tree)], programs=False)), config)
    check_exposure(Running(resolve([str(tree / "part")], programs=True)), config)
    check_exposure(Obedient(), config)  # it runs no programs


def test_the_service_does_not_start(rig: Rig, tmp_path: Path) -> None:
    service = VerifierService(rig.config({"python": {"options": {"import_from": [str(tmp_path)]}}}), url=rig.url)
    assert service.run() == EX_USAGE


def test_links_are_kept_and_nothing_is_named_twice(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "inner").mkdir(parents=True)
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(real)
    found = resolve([str(tmp_path / "first" / "inner"), str(real), str(tmp_path / "none")], programs=False)
    assert str(real) in found.paths
    assert str(real / "inner") not in found.paths
    assert dict(found.links).items() >= {str(tmp_path / "first"): "second", str(tmp_path / "second"): str(real)}.items()
    assert not any(path in ("/usr", "/usr/share", "/usr/local", "/") for path in found.paths)

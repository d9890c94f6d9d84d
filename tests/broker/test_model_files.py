"""Model directories made by somebody else: what must not be loaded is refused in one line, before it is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.model_files import problem_of, shards

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "examples" / "countdown" / "base"


def changed(**fields: Any) -> Callable[[Path], object]:
    return in_file("config.json", **fields)


def in_file(name: str, **fields: Any) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def index(*names: Any) -> Callable[[Path], object]:
    weights = {f"t{at}": name for at, name in enumerate(names)}
    return lambda model: (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        by(model / name)

    return apply


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def header(text: bytes, length: int | None = None) -> Callable[[Path], object]:
    size = struct.pack("<Q", len(text) if length is None else length)
    return replaced("model.safetensors", lambda path: path.write_bytes(size + text))


def endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def template(made_by: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        (model / "additional_chat_templates").mkdir()
        made_by(model / "additional_chat_templates" / "other.jinja")

    return apply


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a vocabulary that no file holds": (changed(vocab_size=1 << 30), "a tensor of"),
    "attention from the Hub": (changed(attn_implementation="a/kernel"), "chooses code from elsewhere"),
    "attention from the Hub, inside": (changed(text_config={"_attn_implementation": {"": "a/b"}}), "chooses code"),
    "other weights": (changed(transformers_weights="other.safetensors"), "names other weights"),
    "an endless template": (replaced("chat_template.jinja", endless), "at most [0-9]+ are read"),
    "endless merges": (replaced("merges.txt", endless), "at most [0-9]+ are read"),
    "an endless template in the folder": (template(endless), "at most [0-9]+ are read"),
    "a template that is a pipe": (template(os.mkfifo), "named pipe"),
    "a template from elsewhere": (template(lambda path: path.symlink_to("/etc/passwd")), "out of the directory"),
    "a width that no file holds": (changed(hidden_size=1 << 24), "a tensor of"),
    "an inner width that no file holds": (changed(intermediate_size=10**9), "a tensor of"),
    "heads that no file holds": (changed(num_attention_heads=10**6, head_dim=10**3), "heads"),
    "layers that no file holds": (changed(num_hidden_layers=10**6), "the files hold [0-9]+ layers"),
    "a number without end": (changed(max_position_embeddings=10**300), "larger than any number"),
    "nested sizes": (changed(text_config={"vocab_size": 1 << 30, "hidden_size": 64}), r"text_config\.vocab_size"),
    "a negative size": (changed(hidden_size=-64), "whole number from 1"),
    "no size": (changed(vocab_size=0), "whole number from 1"),
    "a size that is text": (changed(num_attention_heads="4"), "whole number from 1"),
    "a size that is a list": (changed(head_dim=[1]), "whole number from 1"),
    "a size that is true": (changed(num_hidden_layers=True), "whole number from 1"),
    "no number": (replaced("config.json", lambda path: path.write_text('{"vocab_size": NaN}')), "NaN is no number"),
    "no object": (replaced("config.json", lambda path: path.write_text("[]")), "no JSON object"),
    "no JSON": (replaced("tokenizer.json", lambda path: path.write_bytes(b"\xff\xfe")), "not JSON"),
    "deep JSON": (replaced("config.json", lambda path: path.write_text("[" * 10**6)), "not JSON"),
    "an adapter": (
        lambda model: (model / "adapter_config.json").write_text('{"base_model_name_or_path": "../../x"}'),
        "base model would be loaded",
    ),
    "an index to above": (index("../x.safetensors"), "names '../x.safetensors'"),
    "an index to elsewhere": (index("/etc/passwd"), "names '/etc/passwd'"),
    "an index to a hidden file": (index(".x.safetensors"), "names"),
    "an index to a pickle": (index("pytorch_model.bin"), "names"),
    "an index to no text": (index(["model.safetensors"]), "names"),
    "an index to nothing": (index(), "no weight_map"),
    "weights that run": (pickled, "pytorch_model.bin is a pickle.*safetensors"),
    "a header of no length": (header(b"{}", 1 << 60), "not in the format of safetensors"),
    "a header without shapes": (header(b'{"t": {"shape": [-1]}}'), "no shape"),
    "a header of no JSON": (header(b"x"), "not JSON"),
    "an empty file": (replaced("model.safetensors", Path.touch), "not in the format"),
    "a pipe for weights": (replaced("model.safetensors", os.mkfifo), "model.safetensors is a named pipe"),
    "a pipe for a tokenizer": (replaced("tokenizer.json", os.mkfifo), "tokenizer.json is a named pipe"),
    "a pipe beside the model": (replaced("notes.txt", os.mkfifo), "notes.txt is a named pipe"),
    "a device": (replaced("config.json", lambda path: path.symlink_to("/dev/zero")), "out of the directory"),
    "a link to elsewhere": (
        replaced("vocab.json", lambda path: path.symlink_to("/etc/passwd")),
        "out of the directory",
    ),
    "a folder elsewhere": (replaced("more", lambda path: path.symlink_to("/etc")), "out of the directory"),
    "a link to itself": (replaced("vocab.json", lambda path: path.symlink_to("vocab.json")), "link to nothing"),
    "a folder for a file": (replaced("config.json", Path.mkdir), "config.json is a directory"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_in_a_line(model: Path, name: str) -> None:
    change, match = HOSTILE[name]
    change(model)
    problem = problem_of(model)
    assert problem is not None and problem.startswith(f"model.path = {model}: ")
    assert len(problem) < 600 and "\n" not in problem
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(problem)


def test_models_as_they_are_shared_are_taken(model: Path, tmp_path: Path) -> None:
    assert problem_of(model) is None
    (model / "named.json").symlink_to("config.json")
    (model / ".cache").mkdir()
    assert problem_of(model) is None
    # In the cache of the Hugging Face Hub every file is a link to the blobs of its repository.
    snapshot = tmp_path / "models--x--y" / "snapshots" / "abc"
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(BASE.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert problem_of(snapshot) is None
    (snapshot / "more.json").symlink_to("../../../other")
    assert "link to nothing" in str(problem_of(snapshot))


def test_shards_are_those_that_the_index_names(model: Path) -> None:
    assert shards(model) == [model / "model.safetensors"]
    index("b.safetensors", "a.safetensors", "b.safetensors")(model)
    with pytest.raises(FileNotFoundError):
        shards(model)
    for name in ("a", "b"):
        shutil.copy(model / "model.safetensors", model / f"{name}.safetensors")
    assert shards(model) == [model / "a.safetensors", model / "b.safetensors"]

"""Configurations from other people: bounded in size and depth whatever they repeat, and their secrets never shown."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from deploy.config import yaml_text
from deploy.config.errors import ConfigError
from deploy.config.load import load
from deploy.config.tree import dump

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGED = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 80))
REFUSED = {
    "aliases of lists": (LAUGHS, r"values with aliases written out, at most 100000"),
    "aliases of sections": (MERGED, r"values with aliases written out"),
    "a chain of aliases": (CHAIN, r"levels with aliases written out"),
    "deep lists": ("a: " + "[" * 5000, r"more than 64 levels"),
    "deep sections": ("a: " + "{b: " * 5000, r"more than 64 levels"),
    "deep lines": ("- " * 5000, r"more than 64 levels"),
    "itself": ("a: &a [*a]", r"inside its own anchor"),
    "a key that is a list": ("? [a, b]\n: c", r"is not text"),
    "no such day": ("a: 2026-02-31", r"not YAML"),
    "a number of 5000 digits": ("a: " + "9" * 5000, r"not YAML"),
    "a hexadecimal number of 5000 digits": ("a: 0x" + "f" * 5000, r"not YAML.*at most 64 are read"),
    "a number to the base of 60": ("a: 1" + ":59" * 5000, r"not YAML.*at most 64 are read"),
    "a tag": ("a: !!python/object/apply:os.system [id]", r"not YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_document_that_would_grow_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    text, match = REFUSED[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    small = tmp_path / "small.yaml"
    small.write_text("run: {name: x}")
    before = time.process_time()
    with pytest.raises(ConfigError, match=match) as caught:
        load(path)
    assert time.process_time() - before < 5
    assert len(caught.value.problems) == 1 and len(str(caught.value)) < 500
    with pytest.raises((ConfigError, yaml.YAMLError)):
        yaml_text.parse(text)
    with pytest.raises(ConfigError, match="not a YAML value"):
        load(small, [f"run.name={text}"])


def test_aliases_within_reason_are_read() -> None:
    text = "a: &a {x: 1}\nb: *a\nc: [*a, *a]"
    assert yaml_text.parse(text) == {"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 1}]}


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_a_configuration_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match=r"x\.yaml: (is a (named pipe|device)|has more than 1048576 bytes)"):
        load(path)


URLS = ["REDIS://:hunter@2@h:1", "valkey://me:hunter@2@h/0", "redis:hunter2@h", "redis://h?password=hunter2", "hunter2"]


@pytest.mark.parametrize("url", URLS)
def test_no_password_is_shown_whatever_the_url_looks_like(tmp_path: Path, url: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"run: {{name: x}}\nbroker: {{url: '{url}'}}\nmodel: {{path: m}}\ndata: {{train: t.jsonl}}\n")
    shown = dump(load(path, check="none"))
    assert "hunter" not in shown and "***" in shown

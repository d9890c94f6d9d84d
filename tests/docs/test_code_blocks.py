"""Code that the pages show: Python runs, configurations are valid, commands and make targets exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from deploy.cli.main import app
from deploy.config.tree import Config
from tests.docs.pages import PAGES, ROOT, Block, fenced, name_of, prose, shell_lines

MINIMAL: dict[str, Any] = {"model": {"path": "model"}, "data": {"train": "train.jsonl"}}
"""The two keys without a default: what a fragment is merged into before it is validated."""


@cache
def sieve_command() -> Any:
    """The real command line, as the parser's tree of commands."""
    return get_command(app)


def blocks(language: str) -> list[Any]:
    """The blocks of one language in all pages, as parameters of a test."""
    found = [(page, number, block) for page in PAGES for number, block in enumerate(fenced(page, language))]
    return [pytest.param(block, id=f"{name_of(page)}-{number}") for page, number, block in found]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    result = dict(base)
    for key, value in over.items():
        result[key] = (
            merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
        )
    return result


@pytest.mark.parametrize("block", blocks("yaml"))
def test_configurations_are_valid(block: Block) -> None:
    tree = yaml.safe_load(block.text)
    if isinstance(tree, list):  # a Prometheus rule
        assert all({"alert", "expr", "labels", "annotations"} <= set(rule) for rule in tree)
        return
    Config.model_validate(merged(MINIMAL, tree))


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", blocks("json"))
def test_json_can_be_read(block: Block) -> None:
    assert [json.loads(line) for line in block.text.splitlines()] if block.note == "lines" else json.loads(block.text)


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "python")], ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another in one namespace; those with `example: FILE` are files beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    namespace: dict[str, Any] = {"__name__": "page"}
    try:
        for block in fenced(page, "python"):
            if block.note.startswith("example: "):
                (tmp_path / block.note.removeprefix("example: ")).write_text(block.text, encoding="utf-8")
            code = compile(block.text, f"{page.name}: {block.note or block.text.splitlines()[0]}", "exec")
            if not block.note:
                exec(code, namespace)
    finally:
        for name in set(sys.modules) - before:  # modules of the page itself, so that another page's do not meet them
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_their_options(page: Path) -> None:
    for line in shell_lines(page):
        if not re.match(r"(\w+=\S+ )*(\.venv/bin/)?(sieve|make) ", line) and " -m sieve " not in line:
            continue
        words = shlex.split(line.replace("…", "x"))
        while words and ("=" in words[0] and not words[0].startswith("-")):
            words.pop(0)  # a variable for this command alone
        if words and words[0].removeprefix(".venv/bin/") == "sieve":
            parse(words[1:], page)
        elif words and words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(targets) <= make_targets(), f"{page.name} shows `{line}`"
        elif "sieve" in words:  # torchrun … -m sieve
            parse(words[words.index("sieve") + 1 :], page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_exist(page: Path) -> None:
    known = set(sieve_command().commands)
    for name in re.findall(r"`sieve ([a-z]+)", prose(page)):
        assert name in known, f"{page.name} names `sieve {name}`"
    for name in re.findall(r"`make ([a-z-]+)", prose(page)):
        assert name in make_targets(), f"{page.name} names `make {name}`"


def parse(words: list[str], page: Path) -> None:
    """Parse a command line of `sieve` as the real command would, without running it; `--set` must be valid too."""
    command: Any = sieve_command()
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page.name} shows `sieve {words[0]}`"
        command = command.commands[words.pop(0)]
    context = command.make_context("sieve", list(words))
    tree: dict[str, Any] = MINIMAL
    for assignment in context.params.get("set_") or ():
        key, _, value = assignment.partition("=")
        if key != "KEY":
            below: Any = yaml.safe_load(value)
            for part in reversed(key.split(".")):
                below = {part: below}
            tree = merged(tree, below)
    Config.model_validate(tree)


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return {
        name
        for names in re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        for name in names.split()
    }

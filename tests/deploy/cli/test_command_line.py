"""The command `sieve` itself: help, version, shell completion, and that starting it loads nothing heavy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from deploy.cli.main import Sections, app

SIEVE = Path(sys.executable).with_name("sieve")
BASH = shutil.which("bash")


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    group = group or get_command(app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
@pytest.mark.slow
def test_every_command_has_a_short_and_a_long_help_option(words: tuple[str, ...]) -> None:
    short, long = (CliRunner().invoke(app, [*words, option]) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0, short.output
    assert short.output == long.output and "-h, --help" in short.output


def test_the_version_is_the_installed_one() -> None:
    code = "from importlib.metadata import version; print('sieve', version('sieve-rl'))"
    installed = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "sieve", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, installed.stdout)
    assert re.fullmatch(r"sieve \d+\.\d+\S*\n", done.stdout)


def test_every_command_is_in_a_section_of_the_help_and_its_line_is_whole() -> None:
    group = get_command(app)
    assert isinstance(group, Sections)
    said = CliRunner().invoke(app, ["-h"], terminal_width=80, env={"COLUMNS": "80"}).output
    titles = re.findall(r"^(\S.*):$", said, re.MULTILINE)
    assert titles == ["Options", "Run", "Single services, started by hand", "Look at a run", "Compare"]
    for name in group.commands:
        (line,) = re.findall(rf"^  {name} .*$", said, re.MULTILINE)
        assert line.endswith("."), f"{line!r} is cut off: shorten the first sentence of its docstring"
        assert not line.endswith("..."), f"{line!r} is cut off: shorten the first sentence of its docstring"


def test_help_loads_no_settings_and_nothing_heavy() -> None:
    code = "import sys\ntry:\n    import sieve\n    sieve._main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert loaded & {"torch", "ray", "transformers", "pydantic", "yaml", "redis", "numpy", "rich", "pyarrow"} == set()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sieve", "st"], ["status"]),
        (["sieve", "deadletter", ""], ["list", "show", "retry"]),
        (["sieve", "run", "--re"], ["--resume"]),
        (["sieve", "init", "--task", ""], ["math", "code", "lean", "own"]),
        (["sieve", "run", "exa"], []),  # CONFIG: empty, so that bash completes file names (-o default)
        (["sieve", "eval", "c.yaml", "--checkpoint", "ru"], []),
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.slow
def test_bash_completes(words: list[str], found: list[str]) -> None:
    script = (
        'eval "$(sieve --show-completion)" && complete -p sieve && '
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}) COMP_CWORD={len(words) - 1} && "
        '_sieve_completion sieve && printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert BASH is not None
    done = subprocess.run(
        [BASH, "--norc", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{SIEVE.parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    installed, *completions = done.stdout.splitlines()
    assert "-o default" in installed
    assert [text for text in completions if text] == found

"""Installation: versions by tag, the files of a wheel, and that it works beside a user's folders of the same names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COUNTDOWN = ROOT / "examples" / "countdown"
PACKAGES = ("broker", "actor", "verifier", "learner", "deploy")
GIT = shutil.which("git")
MINE = """
from sieve import Judgement
from verifier.builtin.arithmetic import Arithmetic

class Mine:
    name, version, reasons = "mine", "1", Arithmetic().reasons

    def judge(self, record, answer) -> Judgement:
        return Arithmetic().judge(record, answer)
"""


def call(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def output(*command: str | Path, cwd: Path) -> str:
    done = call(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(GIT is None, reason="needs git")
@pytest.mark.slow
def test_the_version_is_the_newest_tag_and_has_a_fallback_without_one(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("pyproject.toml", ".git_archival.txt", ".gitattributes"):
        shutil.copy(ROOT / name, project)

    def git(*words: str, cwd: Path = project) -> str:
        return output("git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "tag.gpgSign=false", *words, cwd=cwd)

    def version(where: Path) -> str:
        return output(sys.executable, "-m", "setuptools_scm", cwd=where).splitlines()[-1]

    def archived(name: str) -> str:
        (tmp_path / name).mkdir()
        git("archive", "-o", str(tmp_path / f"{name}.tar"), "HEAD")
        with tarfile.open(tmp_path / f"{name}.tar") as file:
            file.extractall(tmp_path / name, filter="data")
        return version(tmp_path / name)

    assert version(project) == "0.1.0", "a copy without git"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert version(project).startswith("0.1."), "a repository without tags"
    assert archived("untagged") == "0.1.0"
    git("tag", "v1.2.3")
    assert (version(project), archived("tagged")) == ("1.2.3", "1.2.3")
    git("commit", "-q", "--allow-empty", "-m", "two")
    assert version(project).startswith("1.2.4.dev1+g")
    git("clone", "-q", "--depth", "1", project.as_uri(), str(tmp_path / "shallow"))
    assert version(tmp_path / "shallow").startswith("0.1."), "no tag within reach"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("sieve.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    out = source.parent / "wheel"
    output(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", out,
        source, cwd=source.parent,
    )  # fmt: skip
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """An environment of its own with the wheel in it, and around it the packages of this one; its python."""
    environment = wheel.parent / "environment"
    output(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    python = environment / "bin" / "python"
    site = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheel.parent))
    # A path in a .pth file is added without the .pth files in it: the editable installation there stays unknown.
    (site / "around.pth").write_text(sysconfig.get_path("purelib") + "\n")
    output(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
        "--ignore-installed", wheel, cwd=wheel.parent,
    )  # fmt: skip
    where = output(python, "-c", "import deploy, sieve; print(deploy.__file__, sieve.__file__)", cwd=wheel.parent)
    assert where.split() == [str(site / "deploy" / "__init__.py"), str(site / "sieve.py")]
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's directory with packages and modules of the same names, which end every process that imports them."""
    for name in ("actor", "deploy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s own package was imported')")
    for name in ("broker", "redis", "learner"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user\\'s own module was imported')")
    (tmp_path / "mine.py").write_text(MINE)
    tree = {
        "run": {"name": "t", "directory": "runs"},
        "model": {"path": str(COUNTDOWN / "base")},
        "data": {"train": str(COUNTDOWN / "train.jsonl"), "eval": str(COUNTDOWN / "eval.jsonl"), "verifier": "mine"},
        "sampling": {"group_size": 4, "max_new_tokens": 14},
        "schedule": {"steps": 3, "groups_per_step": 4, "checkpoint_every": 3},
        "evaluation": {"prompts": 4, "samples": 8},
        "verifier": {"serve": {"mine": {"factory": "mine:Mine"}}},
        "learner": {"threads": 1, "optimizer": {"lr": 1e-4, "warmup_steps": 1}},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


@pytest.mark.slow
def test_a_wheel_has_the_packages_the_module_and_their_data_and_owns_no_other_name(source: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*PACKAGES, "sieve.py"}
    ours = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert ours - set(names) == set(), "every file of the packages is in the wheel"
    assert {f"{name}/py.typed" for name in PACKAGES} <= set(names)
    assert {f"deploy/cli/templates/{task}.yaml" for task in ("math", "code", "lean", "own")} <= set(names)


@pytest.mark.slow
def test_a_source_distribution_has_what_the_wheel_needs(source: Path, wheel: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    name = output(sys.executable, "-c", code, cwd=copy).splitlines()[-1]
    with tarfile.open(tmp_path / name) as file:
        inside = {"/".join(member.name.split("/")[1:]) for member in file.getmembers() if member.isfile()}
    needed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert needed - inside == set() and "pyproject.toml" in inside


@pytest.mark.slow
@pytest.mark.parametrize("command", [("bin/sieve",), ("bin/python", "-m", "sieve")], ids=" ".join)
def test_the_commands_work_beside_folders_of_the_same_names(
    installed: Path, project: Path, command: tuple[str, ...]
) -> None:
    start = [installed.parents[1] / command[0], *command[1:]]
    done = call(*start, "config", "t.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["run"]["directory"] == str(project / "runs")
    done = call(*start, "doctor", "t.yaml", cwd=project)
    assert done.returncode == 0 and "ok       verifier mine: mine/1" in done.stdout, done.stdout + done.stderr
    done = call(*start, "config", "t.yaml", cwd=project, PYTHONPATH=str(project))
    assert done.returncode == 64 and done.stdout == ""
    assert done.stderr == (
        f"sieve: sieve's package 'broker' is hidden by {project}/broker.py; leave its folder out of PYTHONPATH\n"
    )


@pytest.mark.slow
def test_a_run_works_beside_folders_of_the_same_names(installed: Path, project: Path) -> None:
    """Every process of it: the launcher, Ray's workers, and the verifier whose module is beside the configuration."""
    done = call(installed.with_name("sieve"), "run", "t.yaml", "--no-view", cwd=project, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    audit = json.loads((project / "runs" / "t" / "audit.json").read_text())
    assert (audit["committed"], audit["lost"], audit["duplicates"]) == (12, 0, 0)
    records = [json.loads(line) for line in (project / "runs" / "t" / "eval.jsonl").read_text().splitlines()]
    assert [record["version"] for record in records] == [0, 3]

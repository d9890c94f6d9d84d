"""The check that programs of judged answers cannot read this run's files: expected answers, passwords, weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from broker.settings import Shared
from verifier.protocol import Verifier, VerifierError

_ROOT = Path(__file__).parents[1]


def check_exposure(verifier: Verifier, config: Shared) -> None:
    """Raise VerifierError if something private lies inside a tree that the verifier's programs can read.

    A verifier that runs programs says what they can read with its optional attribute `readable`
    (verifier.sandbox.readable.Readable).
    """
    readable = getattr(verifier, "readable", None)
    if readable is None:
        return
    for what, path in _private(config):
        tree = readable.holds(str(path))
        if tree is not None:
            raise VerifierError(
                f"verifier {verifier.name!r}: programs of answers could read {what}, {path}, since they may read "
                f"{tree}; move it elsewhere, or name narrower directories in the verifier's options "
                f"(sandbox.readable, import_from, project)"
            )


def _private(config: Shared) -> Iterator[tuple[str, Path]]:
    """What answers must not see, with its absolute path."""
    yield "the run's directory", config.run.path.absolute()
    for name, source in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if isinstance(source, Path):
            yield f"the prompts of {name}", source.absolute()
    yield "the model of model.path", config.model.path.absolute()
    if (_ROOT / "pyproject.toml").is_file():
        yield "the checkout of this project", _ROOT

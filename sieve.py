"""The public Python interface of sieve: run, evaluate, read a run, write a verifier or an objective.

    import sieve

    run = sieve.run("examples/countdown/countdown.yaml", fresh=True)  # returns when the run is finished
    run.summary()["tuned"]["pass@1"]
    run.metrics()  # a pyarrow.Table, one row per optimiser step

    run = sieve.start("examples/countdown/countdown.yaml", fresh=True)  # returns when the run has begun
    for record in run.watch():
        print(record["step"], record["pass_rate"])

    sieve.evaluate("runs/demo", "runs/demo/model")["change"]["pass@1"]
    sieve.Run("runs/demo").samples()  # one row per judged sample

A run or an evaluation is a process of its own, the command `sieve`. The calling program therefore loads no torch and no
Ray for it, and a run goes on when the program ends. A configuration is the path of a YAML file or of a run directory, a
dictionary of its sections, or a `Config`; relative paths in it start at the working directory.

The names in `__all__` are public: a change to them is in CHANGELOG.md. Everything else may change in any release, in
particular the packages broker, actor, verifier, learner and deploy, which are installed beside this module. Importing
`sieve` imports none of them; each name is imported when it is first used. Only `Objective`, `Context`, `Sequences` and
`Coefficients` load torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from broker.errors import SieveError
    from deploy.api.run import Run, RunFailed
    from deploy.api.start import evaluate, load_config, run, start
    from deploy.config.errors import ConfigError
    from deploy.config.tree import Config
    from learner.objective.protocol import Context, Objective
    from learner.objective.sequences import Coefficients, Sequences
    from verifier.protocol import Judgement, Verifier

__version__: str
__all__ = [
    "Coefficients", "Config", "ConfigError", "Context", "Judgement", "Objective", "Run", "RunFailed", "Sequences",
    "SieveError", "Verifier", "__version__", "evaluate", "load_config", "run", "start",
]  # fmt: skip

_HOMES = {
    "broker.errors": ["SieveError"],
    "deploy.api.run": ["Run", "RunFailed"],
    "deploy.api.start": ["evaluate", "load_config", "run", "start"],
    "deploy.config.errors": ["ConfigError"],
    "deploy.config.tree": ["Config"],
    "learner.objective.protocol": ["Context", "Objective"],
    "learner.objective.sequences": ["Coefficients", "Sequences"],
    "verifier.protocol": ["Judgement", "Verifier"],
}
_PACKAGES = ("broker", "actor", "verifier", "learner", "deploy")
_ROOT = os.path.dirname(os.path.abspath(__file__))
"""The directory of the five packages: site-packages, or the checkout of an editable installation."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sieve-rl")
    for module, names in _HOMES.items():
        if name in names:
            hidden = _hidden()
            if hidden is not None:
                raise ImportError(f"{hidden}; rename it, or use the command `sieve` in place of this module")
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'sieve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _hidden() -> str | None:
    """What hides one of the five packages in this process; None when each of their names leads to `_ROOT`."""
    for name in _PACKAGES:
        module = sys.modules.get(name)
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        where = (spec.origin or next(iter(spec.submodule_search_locations or []), "")) if spec is not None else ""
        if not os.path.realpath(where).startswith(os.path.realpath(os.path.join(_ROOT, name)) + os.sep):
            return f"sieve's package {name!r} is hidden by {where or 'nothing: it is not installed'}"
    return None


def _main() -> NoReturn:
    """The command `sieve`; `python -m sieve` and `torchrun -m sieve` are the same.

    `python -m` puts the working directory first on the path. It is searched last instead, so that folders of the user's
    own called `actor` or `deploy` hide nothing.
    """
    if __name__ == "__main__" and not sys.flags.safe_path:
        del sys.path[0]
    if _ROOT not in sys.path:
        sys.path.append(_ROOT)  # run from a checkout that is not installed
    hidden = _hidden()
    if hidden is not None:
        print(f"sieve: {hidden}; leave its folder out of PYTHONPATH", file=sys.stderr)
        sys.exit(64)
    from deploy.cli.main import main

    main()


if __name__ == "__main__":
    _main()

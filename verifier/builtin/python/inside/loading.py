"""Running main.py as a module; the whole of what the process of a program with stdin and stdout executes."""

import builtins
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    PRELUDE = ""


def load(name: str) -> "dict[str, Any]":
    """Run the prelude and then main.py as the module `name`; returns its namespace."""
    with open("main.py", encoding="utf-8") as file:
        source = file.read()
    # Programs expect exit and quit, which the site module defines; it is not loaded.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(1_000_000)  # more would not fit into the output; CPython starts with 4,300
    sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["main.py"]
    module = types.ModuleType(name)
    module.__file__ = os.path.abspath("main.py")
    sys.modules[name] = module
    if PRELUDE:
        exec(compile(PRELUDE, "prelude", "exec", dont_inherit=True), module.__dict__)
    exec(compile(source, "main.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__

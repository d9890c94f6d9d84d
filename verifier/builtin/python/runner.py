"""The program that runs inside the sandbox and calls the judged or the checking code; standard library only.

    script            run main.py as a program
    calls ENTRY       load main.py, then answer each line on descriptor 3 with a call of ENTRY
    checks            the grader: run trusted checks, each call of `candidate` being a question on descriptor 3

`script` and `calls` share a process with the solution, so nothing that they say is trusted: all they could disclose are
their inputs, and all they send are JSON values that are compared elsewhere. `checks` never runs untrusted code.
"""

import builtins
import json
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would add milliseconds to every verdict
    from typing import Any


def load(name: str) -> "dict[str, Any]":
    """Run main.py as the module `name`; returns its namespace."""
    with open("main.py", encoding="utf-8") as file:
        source = file.read()
    # Programs expect exit and quit, which the site module defines; it is not loaded.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    sys.path.insert(0, os.getcwd())
    sys.argv[:] = ["main.py"]
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "main.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def calls(entry: str) -> None:
    """Answer each line {"id", "args", "kwargs"} with {"id", "value"} or {"id", "trouble", "detail"}."""
    with os.fdopen(3, "r+b", buffering=0) as raw, open(3, "rb", closefd=False) as lines:
        trouble, detail, names = "", "", {}
        try:
            names = load("solution")
        except Exception as error:
            trouble, detail = ("syntax_error" if isinstance(error, SyntaxError) else "exception"), describe(error)
        if not trouble:
            try:
                find(names, entry)
            except (KeyError, AttributeError):
                trouble, detail = "no_entry", f"the program defines no {entry}"
            except Exception as error:
                trouble, detail = "exception", describe(error)
        for line in lines:
            question = json.loads(line)
            reply = {"id": question["id"]}
            try:
                if trouble:
                    reply.update(trouble=trouble, detail=detail)
                else:
                    value = find(names, entry)(*question["args"], **question["kwargs"])
                    reply["value"] = plain(value)
                    text = json.dumps(reply, allow_nan=False)
            except NotPlain as error:
                reply.update(trouble="not_json", detail=str(error))
            except Exception as error:
                reply.update(trouble="exception", detail=describe(error))
            if "trouble" in reply:
                reply.pop("value", None)
                text = json.dumps(reply)
            raw.write(text.encode() + b"\n")


def find(names: "dict[str, Any]", entry: str) -> "Any":
    """The function `entry`, or the method of a new object for "Class.method". Raises KeyError, AttributeError."""
    head, _, method = entry.partition(".")
    return getattr(names[head](), method) if method else names[head]


class NotPlain(Exception):
    """The value has no JSON form."""


def plain(value: "Any", depth: int = 0) -> "Any":
    """`value` as JSON types. Raises NotPlain, also for keys that are not strings."""
    if depth > 70:
        raise NotPlain("nested too deep")
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise NotPlain(f"{value} is not a JSON number")
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one, depth + 1) for one in value]
    if isinstance(value, dict):
        if any(type(key) is not str for key in value):
            raise NotPlain("an object's keys must be texts")
        return {key: plain(one, depth + 1) for key, one in value.items()}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return plain(kind(value), depth + 1)
    raise NotPlain(f"{type(value).__name__} has no JSON form")


def describe(error: BaseException) -> str:
    """Type and message of an exception, at most 500 characters."""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return type(error).__name__


def checks() -> None:
    """Answer each line {"nonce", "source", "entry"} with {"nonce", "passed", "detail"}.

    Before that, the check may call `candidate`: each call sends {"args", "kwargs"} and waits for {"value"}.
    """
    with os.fdopen(3, "r+b", buffering=0) as raw, open(3, "rb", closefd=False) as lines:

        def candidate(*args: "Any", **kwargs: "Any") -> "Any":
            raw.write(json.dumps({"args": plain(args), "kwargs": plain(kwargs)}).encode() + b"\n")
            return json.loads(next(lines))["value"]

        for line in lines:
            order = json.loads(line)
            verdict = {"nonce": order["nonce"], "passed": False, "detail": ""}
            try:
                names: dict[str, Any] = {
                    "__name__": "check",
                    "candidate": candidate,
                    order["entry"].rpartition(".")[2]: candidate,
                }
                exec(compile(order["source"], "check", "exec", dont_inherit=True), names)
                if callable(names.get("check")):
                    names["check"](candidate)
                verdict["passed"] = True
            except Exception as error:
                verdict["detail"] = describe(error)
            raw.write(json.dumps(verdict).encode() + b"\n")


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "script":
        load("__main__")
    elif mode == "calls":
        calls(*rest)
    else:
        checks()

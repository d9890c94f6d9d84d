"""The process of the solution for tests that call it: it answers each line on descriptor 3 with a call of the entry.

It holds the solution, so nothing that it says is trusted: all it could disclose are its inputs, and all it sends are
forms (see `forms`), which are compared elsewhere.
"""

import contextlib
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from verifier.builtin.python.inside.forms import NoForm, decode, describe, encode
    from verifier.builtin.python.inside.loading import load


def calls(entry: str) -> None:
    """Answer each line {"id", "args", "kwargs"} with {"id"} and one of these:

    {"value"}; {"raised": names of the exception's classes, "args", "text"}; {"trouble", "detail"}. With "ignore" in the
    line the value is null. With "after", the first two also have {"after": {"args", "kwargs"}} if the call changed
    them and they have a form.
    """
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
                    reply.update(answer(names, entry, question))
            except NoForm as error:
                reply.update(trouble="not_json", detail=str(error))
            except Exception as error:
                reply.update(trouble="exception", detail=describe(error))
            raw.write(json.dumps(reply, allow_nan=False, separators=(",", ":")).encode() + b"\n")


def find(names: "dict[str, Any]", entry: str) -> "Any":
    """The function `entry`, or the method of a new object for "Class.method". Raises KeyError, AttributeError."""
    head, _, method = entry.partition(".")
    return getattr(names[head](), method) if method else names[head]


def answer(names: "dict[str, Any]", entry: str, question: "dict[str, Any]") -> "dict[str, Any]":
    """The reply to one question. Raises NoForm."""
    args = [decode(one) for one in question["args"]]
    kwargs = {key: decode(one) for key, one in question["kwargs"].items()}
    reply: dict[str, Any] = {}
    try:
        value = find(names, entry)(*args, **kwargs)
    except BaseException as error:  # also SystemExit, which a test may expect
        reply.update(raised=[kind.__name__ for kind in type(error).__mro__[:-1]], args=[], text=describe(error))
        with contextlib.suppress(Exception):
            reply.update(args=[encode(one) for one in error.args], text=str(error)[:2000])
    else:
        reply["value"] = None if "ignore" in question else encode(value)
    if "after" in question:
        try:
            after = {
                "args": [encode(one) for one in args],
                "kwargs": {key: encode(one) for key, one in kwargs.items()},
            }
        except NoForm:
            return reply
        before = {"args": question["args"], "kwargs": question["kwargs"]}
        if question["after"] == "always" or json.dumps(after) != json.dumps(before):
            reply["after"] = after
    return reply

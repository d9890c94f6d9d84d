"""The process of the grader: it runs the record's own checks and its checker, and never runs untrusted code.

Each call of `candidate` in a check is a question on descriptor 3. The values that come back belong to the closed set of
`forms`; the exceptions are built here from names.
"""

import builtins
import json
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from verifier.builtin.python.inside.forms import NoForm, TooDeep, decode, describe, encode


class Grader:
    """The trusted namespaces, and the exchange with the verifier over `raw` and `lines`."""

    def __init__(self, entry: str, raw: "Any", lines: "Any") -> None:
        self.raw, self.lines, self.entry = raw, lines, entry
        self.names: dict[str, Any] = {}
        self.scope: dict[str, Any] = {}
        self.checker: Any = None
        self.called = False
        self.raised: list[BaseException] = []
        self.unsendable = ""

    def setup(self) -> None:
        """Run setup.py, then bind the names of the entry, then run checker.py beside them."""
        module = types.ModuleType("check")
        sys.modules["check"] = module
        names = vars(module)
        head, _, method = self.entry.partition(".")
        bound = {"candidate": self.candidate, method or head: self.candidate}
        if method:
            bound[head] = type(head, (), {method: staticmethod(self.candidate)})
        solution = types.ModuleType("solution")
        vars(solution).update(bound)
        sys.modules["solution"] = solution
        names.update(bound)
        self.scope = names
        run("setup.py", names)
        names.update(bound)  # a setup made from a problem's text may define the entry without a body
        beside = dict(names)
        run("checker.py", beside)
        self.names, self.checker = names, beside.get("check")

    def judge(self, order: "dict[str, Any]") -> "dict[str, Any]":
        """{"passed", "detail", "blame", "name"} for one order, a check or the input and output of a program.

        `blame` is "record" or "program" where that is known, `name` the name that a NameError missed.
        """
        self.called, self.raised, self.unsendable = False, [], ""
        detail = blame = name = ""
        try:
            if not self.names:
                self.setup()
            if "output" in order:
                if not callable(self.checker):
                    raise NameError("the checker defines no function check(input, output, expected)")
                self.called = True
                found = self.checker(order["input"], order["output"], order["expected"])
                if not isinstance(found, bool):
                    blame, detail = "record", f"the checker returned {type(found).__name__}, not True or False"
                elif not found:
                    blame, detail = "program", "the checker returned False"
            else:
                self.check(order["source"])
                if not self.called:
                    blame, detail = "record", "the check ends without calling the entry"
            passed = not detail
        except BaseException as error:  # also SystemExit: a check that ends its process has not passed
            passed, detail = False, describe(error)
            if any(error is one for one in self.raised):
                blame = "program"
            elif not self.called:
                blame = "record"
            elif isinstance(error, NameError) and not self.raised:
                name = getattr(error, "name", "") or ""
        if self.unsendable:
            passed, blame, detail = False, "record", self.unsendable
        return {"passed": passed, "detail": detail, "blame": blame, "name": name}

    def check(self, source: str) -> None:
        """Run a check in a namespace of its own; a function named check that it defines is called."""
        names = self.scope = dict(self.names)
        exec(compile(source, "check", "exec", dont_inherit=True), names)
        check = names.get("check")
        if callable(check) and check is not self.names.get("check"):
            check(self.candidate)

    def candidate(self, *args: "Any", **kwargs: "Any") -> "Any":
        """Have the solution called: its value, or its exception."""
        try:
            question: dict[str, Any] = {
                "args": [encode(one) for one in args],
                "kwargs": {key: encode(one) for key, one in kwargs.items()},
            }
        except NoForm as error:
            if not (self.called and isinstance(error, TooDeep)):  # a value of the solution can be too deep, never worse
                self.unsendable = f"an argument cannot be sent to the program: {error}"
            raise
        if any(not isinstance(one, (int, float, str, bytes, type(None))) for one in (*args, *kwargs.values())):
            question["after"] = "changed"
        self.raw.write(json.dumps(question, separators=(",", ":")).encode() + b"\n")
        reply = json.loads(next(self.lines))
        self.called = True
        after = reply.get("after")
        if after is not None:
            for old, new in zip(args, after["args"]):  # noqa: B905
                copy_back(old, decode(new))
            for key, old in kwargs.items():
                if key in after["kwargs"]:
                    copy_back(old, decode(after["kwargs"][key]))
        if "raised" in reply:
            theirs = self.exception(reply["raised"], [decode(one) for one in reply["args"]], reply["text"])
            self.raised.append(theirs)
            raise theirs
        return decode(reply["value"])

    def exception(self, raised: "list[str]", args: "list[Any]", text: str) -> Exception:
        """An exception of the first class that is known here, under the name of the class that was raised.

        Known are builtin classes and those that the record defines. Neither SystemExit nor what ends an iteration or
        skips a test is among them: it would end a check early without a failure.
        """
        kind: Any = Exception
        for name in raised:
            known = self.scope.get(name)
            if getattr(known, "__module__", "") != "check":
                known = vars(builtins).get(name)
            if isinstance(known, type) and issubclass(known, Exception):
                if issubclass(known, (StopIteration, StopAsyncIteration)):
                    continue
                kind = known
                break
        try:
            if kind.__name__ != raised[0]:
                kind = type(raised[0], (kind,), {})
            error: Exception = kind(*args)
            if str(error) != text:
                error = type(kind.__name__, (kind,), {"__str__": lambda self: text})(*args)
        except Exception:
            error = Exception(text)
        return error


def run(path: str, names: "dict[str, Any]") -> None:
    """Run a file of the record, if it is there, in a namespace."""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            source = file.read()
        exec(compile(source, path, "exec", dont_inherit=True), names)


def copy_back(old: "Any", new: "Any") -> None:
    """Give the containers of an argument the content that the call left in them."""
    if type(old) is tuple and type(new) is tuple:
        for one, other in zip(old, new):  # noqa: B905
            copy_back(one, other)
    elif isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, (dict, set)) and type(new) is (dict if isinstance(old, dict) else set):
        old.clear()
        old.update(new)
    elif type(old).__name__ == "deque" and type(new) is type(old):
        old.clear()
        old.extend(new)


def grade(entry: str) -> None:
    """Answer each order, which has a nonce, with a verdict of the same nonce."""
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(1_000_000)
    with os.fdopen(3, "r+b", buffering=0) as raw, open(3, "rb", closefd=False) as lines:
        grader = Grader(entry, raw, lines)
        for line in lines:
            order = json.loads(line)
            verdict = grader.judge(order)
            raw.write(json.dumps({"nonce": order["nonce"], **verdict}).encode() + b"\n")

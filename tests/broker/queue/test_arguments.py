"""Named arguments of the Lua scripts: what a call must name, what Lua sees, and that every script and call agrees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from broker.queue.arguments import Signature, parse
from broker.queue.scripts import signature
from broker.runtime.endpoint import connect_once
from tests.broker.builders import connect

LUA = resources.files("broker.queue") / "lua"
SCRIPTS = sorted(name for file in LUA.iterdir() if (name := file.name.removesuffix(".lua")) != "prelude")
BROKER = Path(__file__).parents[3] / "broker"
DECLARED = """-- What it does.
---@param actor string
---@param room number  completions
---@param admitted number?
---@param scores {idx: number, data: string}[]  one per completion
return 1
"""


def text(name: str) -> str:
    return (LUA / f"{name}.lua").read_text(encoding="utf-8")


def code(lua: str) -> str:
    """The script without its comments."""
    return re.sub(r"--[^\n]*", "", lua)


# --- declarations


def test_a_header_declares_scalars_in_order_and_a_list_of_records_at_the_end() -> None:
    found = parse("example", DECLARED)
    assert list(found.scalars.items()) == [("actor", "string"), ("room", "number"), ("admitted", "number?")]
    assert (found.items, found.item) == ("scores", {"idx": "number", "data": "string"})


def test_arguments_are_packed_in_the_declared_order_whatever_the_order_of_the_call() -> None:
    scores = [{"data": b"x", "idx": 3}, {"idx": 4, "data": b"y"}]
    given = {"scores": scores, "room": 2, "actor": "a", "admitted": None}
    assert parse("example", DECLARED).pack(given) == ["a", 2, "", 3, b"x", 4, b"y"]
    assert parse("example", DECLARED).pack(given | {"admitted": 0, "scores": []}) == ["a", 2, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rom": 1}, "got actor, admitted, rom, room, scores"),
        ({"room": ...}, r"example\.lua takes actor, admitted, room, scores, got actor, admitted, scores"),
        ({"scores": [{"idx": 1}]}, "takes data, idx in each of scores, got idx"),
        ({"scores": [{"idx": 1, "data": b"", "more": 1}]}, "got data, idx, more"),
    ],
)
def test_an_unknown_or_missing_name_is_a_type_error(change: dict[str, Any], said: str) -> None:
    given = {"actor": "a", "room": 1, "admitted": 1, "scores": []} | change
    given = {name: value for name, value in given.items() if value is not ...}
    with pytest.raises(TypeError, match=said):
        parse("example", DECLARED).pack(given)


@pytest.mark.parametrize(
    "line",
    [
        "---@param Actor string",
        "---@param actor bytes",
        "---@param actor",
        "---@param scores {idx: integer}[]",
        "---@param scores {}[]",
        "---@param ids string[]\n---@param actor string",
        "---@param actor string\n---@param actor string",
        "---@return number",
    ],
)
def test_a_header_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"example\.lua: "):
        parse("example", line)


# --- the two sides on a real server


@given(
    numbers=st.lists(st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    records=st.lists(st.tuples(st.integers(0, 2**31), st.binary(max_size=20)), max_size=4),
    admitted=st.none() | st.integers(0, 9),
)
def test_lua_sees_what_python_gave(redis_server: Any, numbers: list[Any], records: list[Any], admitted: Any) -> None:
    """Numbers to the last bit, bytes as they are, None as nil, records as tables of their fields."""
    declared = parse("example", DECLARED)
    check = """
    local seen = {actor, string.format('%.17g', room), admitted == nil and 'nil' or admitted}
    for _, score in ipairs(scores) do
      seen[#seen + 1] = score.idx
      seen[#seen + 1] = score.data
    end
    return seen
    """
    with redis.Redis.from_url(redis_server.url) as client:
        for number in numbers or [0]:
            given = {
                "actor": b"\x00\xff", "room": number, "admitted": admitted,
                "scores": [{"idx": idx, "data": data} for idx, data in records],
            }  # fmt: skip
            reply: Any = client.eval(declared.prologue + check, 0, *declared.pack(given))
            assert (reply[0], float(reply[1])) == (b"\x00\xff", float(number))
            assert reply[2] == (b"nil" if admitted is None else admitted)
            assert reply[3:] == [part for idx, data in records for part in (idx, data)]


def test_a_list_of_plain_values_arrives_in_order() -> None:
    declared = parse("example", "---@param actor string\n---@param numbers number[]")
    assert declared.pack({"actor": "a", "numbers": (3, 1, 2)}) == ["a", 3, 1, 2]
    with pytest.raises(TypeError, match="takes a list of values as numbers, got '312'"):
        declared.pack({"actor": "a", "numbers": "312"})
    assert declared.prologue == (
        "local actor = ARGV[1]\nlocal numbers = {}\nfor i = 2, #ARGV do numbers[#numbers + 1] = tonumber(ARGV[i]) end\n"
    )


def test_a_wrong_name_is_refused_before_anything_is_sent(redis_url: str) -> None:
    broker = connect(redis_url)
    with pytest.raises(TypeError, match=r"release\.lua takes actor, group_ids, got actor, ids"):
        broker.script("release", actor="a", ids=[])
    with pytest.raises(TypeError, match=r"offer\.lua takes actor, completions, payloads"):
        broker._scripts.many("offer", [{"actor": "a", "payloads": b"", "completions": []}, {"actor": "a"}])
    with connect_once(redis_url) as client:
        assert client.dbsize() == 0
    broker.close()


# --- the scripts and their callers


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_every_argument_it_declares_and_reads_none_by_position(name: str) -> None:
    body, declared = code(text(name)), signature(name)
    assert not re.search(r"\b(ARGV|KEYS)\b", body)
    used = set(re.findall(r"(?<![.\w])[a-z_]+", body))
    assert declared.names <= used
    if isinstance(declared.item, dict):
        assert {f".{field}" for field in declared.item} <= set(re.findall(r"\.[a-z_]+", body))


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_argument_hides_a_name_of_the_prelude_or_is_declared_again(name: str) -> None:
    shared = set(re.findall(r"^local (?:function )?([a-z_]+)", text("prelude"), re.MULTILINE))
    assert {"num", "group", "fence", "age"} <= shared
    names = signature(name).names
    assert not names & shared
    assert not names & set(re.findall(r"^local (?:function )?([a-z_]+)", code(text(name)), re.MULTILINE))


def test_headers_and_code_are_within_120_columns() -> None:
    long = [
        f"{name}.lua:{number}"
        for name in ["prelude", *SCRIPTS]
        for number, line in enumerate(text(name).splitlines(), 1)
        if len(line) > 120
    ]
    assert long == []


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """(place, script, keywords) of every call by name in the package broker whose keywords stand in the call."""
    for path in sorted(BROKER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            first = node.args[0]
            named = node.func.attr in ("script", "_scripts", "_cache") and isinstance(first, ast.Constant)
            if named and all(keyword.arg is not None for keyword in node.keywords):
                assert isinstance(first, ast.Constant)
                keywords = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                yield f"{path.name}:{node.lineno}", str(first.value), keywords


def test_every_call_names_exactly_what_its_script_declares() -> None:
    found = list(calls())
    assert [(place, names) for place, name, names in found if names != signature(name).names] == []
    called = {name for _, name, _ in found}
    assert set(SCRIPTS) - called == {"offer", "judge"}  # their arguments are built as dictionaries, in portions


def test_a_signature_without_arguments_takes_none() -> None:
    assert Signature("depths", {}).pack({}) == []
    with pytest.raises(TypeError, match=r"depths\.lua takes nothing, got actor"):
        Signature("depths", {}).pack({"actor": "a"})

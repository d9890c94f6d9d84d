"""YAML from files, the environment and the command line, read as plain data of bounded size.

A few hundred bytes of YAML can stand for gigabytes: an alias repeats all that its anchor holds. So the values are
counted as if each alias were written out.
"""

from __future__ import annotations

import typing
from typing import Any

import yaml

from deploy.config.errors import ConfigError

MOST_VALUES = 100_000
"""Values in one document, aliases written out. The largest configurations have some hundreds."""
LONGEST_NUMBER = 64
"""Characters of a number. Of thousands, Python makes one that it refuses to print."""
DEEPEST = 64
"""Levels of sections and lists, aliases written out."""


def parse(text: str) -> Any:
    """The value that `text` is in YAML.

    Raises yaml.YAMLError for text that is no YAML, ConfigError, without the text's place, for keys that are no text or
    written twice, and for a document that is too large or too deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, OverflowError) as error:  # of a date or a number that there is not
        raise yaml.YAMLError(str(error)[:200]) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML, except that a key that is written twice is an error: which one was meant cannot be known."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise ConfigError([f"line {line}: more than {DEEPEST} levels of sections and lists; write it flatter"])
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > LONGEST_NUMBER:
            problem = (
                f"a number of {len(node.value)} characters, at most {LONGEST_NUMBER} are read; quote it if it is text"
            )
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return yaml.SafeLoader.yaml_constructors[node.tag](self, node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError([f"line {line}: key {str(key)[:80]!r} is not text; quote it or remove it"])
            if key in seen:
                problem = f"line {line}: key {key!r} is written twice (first on line {seen[key]}); remove one"
                raise ConfigError([problem])
            seen[key] = line
        return typing.cast("dict[Any, Any]", super().construct_mapping(node, deep))


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(values, levels) of a node with its aliases written out. Raises ConfigError beyond the limits.

    `known`: those of the nodes seen before, by identity; (0, 0) while a node is being measured.
    """
    if id(node) in known:
        values, levels = known[id(node)]
        if not values:
            raise ConfigError([f"line {node.start_mark.line + 1}: an alias inside its own anchor; write it out"])
        return values, levels
    known[id(node)] = (0, 0)
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    found = [_measure(part, known) for part in below]
    values = 1 + sum(count for count, _ in found)
    levels = 1 + max((depth for _, depth in found), default=0)
    if values > MOST_VALUES or levels > DEEPEST:
        what = f"{values} values" if values > MOST_VALUES else f"{levels} levels"
        limit = f"{MOST_VALUES} values and {DEEPEST} levels"
        raise ConfigError(
            [f"line {node.start_mark.line + 1}: {what} with aliases written out, at most {limit} are read"]
        )
    known[id(node)] = (values, levels)
    return values, levels

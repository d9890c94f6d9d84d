"""Validation errors of a configuration in words: one line each, with the key, the value, the limit and the remedy."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, Tag, ValidationError

from deploy.config.tree import Config

BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
"""Kinds of errors about a bound, each with its words and with the key of the bound in the error's context."""


def explain(error: ValidationError) -> list[str]:
    """One line for each error that pydantic found."""
    return [_line(problem) for problem in error.errors(include_url=False)]


def _line(problem: Any) -> str:
    place = _place([str(part) for part in problem["loc"]])
    key, kind, context = ".".join(place.keys), problem["type"], problem.get("ctx", {})
    value = "***" if key == "broker.url" else repr(problem.get("input"))[:80]
    if kind == "extra_forbidden":
        return f"{key} = {value}: unknown key; {_remedy_for_unknown(place)}"
    if kind == "missing":
        return f"{key}: required and not given; add it to the file or pass --set {key}=…"
    if kind in BOUNDS:
        words, name = BOUNDS[kind]
        return f"{key} = {value}: must be {words} {context[name]}; change {key}"
    if kind == "value_error":
        # Raised by a section's own validator, whose message has value, limit and remedy.
        message = str(context.get("error", problem["msg"]))
        return message if message.startswith(key) else f"{key}: {message}"
    if kind in ("literal_error", "enum"):
        return f"{key} = {value}: must be one of {context['expected']}; change {key}"
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return f"{key}.{tag} = {context['tag']!r}: must be one of {context['expected_tags']}; change {key}.{tag}"
    if kind == "string_pattern_mismatch":
        return f"{key} = {value}: must match {context['pattern']}; change {key}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key} = {value}: is a section; write its keys below it, or {key}.<key>=… with --set"
    return f"{key} = {value}: {problem['msg']}; change {key}"


class _Place(NamedTuple):
    """Where an error is, in terms of what a person wrote."""

    keys: list[str]
    """The keys from the root down. Pydantic's own location also has the tags of union members."""
    sections: list[type[BaseModel]]
    """The sections that the last key may belong to."""
    others: list[type[BaseModel]]
    """The members of a union that were not chosen on the way."""


def _place(location: list[str]) -> _Place:
    """Follow pydantic's location of an error from the root of the configuration down."""
    here: list[Any] = [Config]
    keys: list[str] = []
    others: list[type[BaseModel]] = []
    for number, part in enumerate(location):
        sections = [section for annotation in here for section in _sections_in(annotation)]
        members = [member for annotation in here for member in _tagged(annotation, part)]
        if not members and len(sections) > 1:
            members = [section for section in sections if _only_value(section, "name") == part]
        below = [section.model_fields[part].annotation for section in sections if part in section.model_fields]
        if members:  # a tag: it chooses among the members of a union
            here = members
            chosen = {section for annotation in here for section in _sections_in(annotation)}
            others = [*others, *(section for section in sections if section not in chosen)]
        else:
            keys.append(part)
            if below and number < len(location) - 1:
                here, others = below, []
    return _Place(keys, [section for annotation in here for section in _sections_in(annotation)], others)


def _remedy_for_unknown(place: _Place) -> str:
    """What to do about an unknown key: it belongs to another member of the union, is misspelt, or is to be removed."""
    *parents, leaf = place.keys
    owners = [name for other in place.others if leaf in other.model_fields and (name := _only_value(other, "name"))]
    chosen = _only_value(place.sections[0], "name") if len(place.sections) == 1 else ""
    if owners and chosen:
        return (
            f"{chosen} has no such key, {', '.join(owners)} has; remove it, or replace the section: "
            f"--set {'.'.join(parents)}='{{name: {chosen}}}'"
        )
    here = sorted({name for section in place.sections for name in section.model_fields})
    near = difflib.get_close_matches(leaf, here, 1, 0.6)
    if near:
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    everywhere = dict(_keys(Config))
    near = difflib.get_close_matches(leaf, everywhere, 1, 0.75)
    if near:
        return f"did you mean {everywhere[near[0]]}?"
    return f"remove it; known here: {', '.join(here)}"


def _tagged(annotation: Any, tag: str) -> list[Any]:
    """The members of a union that carry `Tag(tag)`."""
    arguments = typing.get_args(annotation)
    if any(isinstance(argument, Tag) and argument.tag == tag for argument in arguments):
        return [arguments[0]]
    return [inner for argument in arguments for inner in _tagged(argument, tag)]


def _only_value(section: type[BaseModel], field: str) -> str:
    """The value of a field that can have only one, as a Literal; empty where `section` has no such field."""
    allowed = typing.get_args(section.model_fields[field].annotation) if field in section.model_fields else ()
    return str(allowed[0]) if len(allowed) == 1 and isinstance(allowed[0], str) else ""


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Every section type in an annotation: optional, union, mapping and annotated ones included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, full key) of every setting in `section` and below that is not itself a section."""
    for name, field in section.model_fields.items():
        below = _sections_in(field.annotation)
        if not below:
            yield name, f"{prefix}{name}"
        for inner in below:
            yield from _keys(inner, f"{prefix}{name}.")

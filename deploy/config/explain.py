"""Validation errors of a configuration in words: one line each, with the key, the value, the limit and the remedy.

An unknown key gets the nearest known one, from the section where it stands or from anywhere in the configuration.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Tag, ValidationError

from deploy.config.tree import Config


def explain(error: ValidationError) -> list[str]:
    """Pydantic's errors, one line each: the key, the value, the limit and what to do."""
    return [_line(problem) for problem in error.errors(include_url=False)]


def _line(problem: Any) -> str:
    loc, sections, dropped = _written([str(part) for part in problem["loc"]])
    key, kind, context = ".".join(loc), problem["type"], problem.get("ctx", {})
    value = "***" if key == "broker.url" else repr(problem.get("input"))[:80]
    bounds = {"greater_than_equal": ("at least", "ge"), "greater_than": ("greater than", "gt"),
              "less_than_equal": ("at most", "le"), "less_than": ("less than", "lt")}  # fmt: skip
    if kind == "extra_forbidden":
        return f"{key} = {value}: unknown key; {_other_member(loc, sections, dropped) or _nearest(loc, sections)}"
    if kind == "missing":
        return f"{key}: required and not given; add it to the file or pass --set {key}=…"
    if kind in bounds:
        words, name = bounds[kind]
        return f"{key} = {value}: must be {words} {context[name]}; change {key}"
    if kind == "value_error":
        # The section's own validator: its message already says value, limit and remedy.
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


def _nearest(loc: list[str], sections: list[type[BaseModel]]) -> str:
    """What was probably meant by the unknown last part of `loc`, in which `sections` may stand."""
    leaf, parents = loc[-1], loc[:-1]
    here = sorted({name for section in sections for name in section.model_fields})
    near = difflib.get_close_matches(leaf, here, 1, 0.6)
    if near:
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    everywhere = dict(_keys(Config))
    near = difflib.get_close_matches(leaf, everywhere, 1, 0.75)
    if near:
        return f"did you mean {everywhere[near[0]]}?"
    return f"remove it; known here: {', '.join(here)}"


def _other_member(loc: list[str], sections: list[type[BaseModel]], others: list[type[BaseModel]]) -> str:
    """The remedy for a key that another member of the same union has; empty where none has it."""
    leaf, parent = loc[-1], ".".join(loc[:-1])
    owners = [name for other in others if leaf in other.model_fields and (name := _literal(other, "name"))]
    chosen = _literal(sections[0], "name") if len(sections) == 1 else ""
    if not owners or not chosen:
        return ""
    return (
        f"{chosen} has no such key, {', '.join(owners)} has; remove it, or replace the section: "
        f"--set {parent}='{{name: {chosen}}}'"
    )


def _written(loc: list[str]) -> tuple[list[str], list[type[BaseModel]], list[type[BaseModel]]]:
    """(`loc` as a person writes it, without pydantic's tags of union members; the sections in which its last part
    stands; the other members of their union)."""
    here: list[Any] = [Config]
    keys: list[str] = []
    others: list[type[BaseModel]] = []
    for number, part in enumerate(loc):
        models = [model for annotation in here for model in _models_in(annotation)]
        tagged = [inner for annotation in here for inner in _tagged(annotation, part)]
        tagged = tagged or [model for model in models if len(models) > 1 and _literal(model, "name") == part]
        below = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if tagged:
            here = tagged
            kept = {model for annotation in here for model in _models_in(annotation)}
            others = [*others, *(model for model in models if model not in kept)]
        else:
            keys.append(part)
            if below and number < len(loc) - 1:
                here, others = below, []
    return keys, [model for annotation in here for model in _models_in(annotation)], others


def _tagged(annotation: Any, tag: str) -> list[Any]:
    """The members of a union that carry `Tag(tag)`."""
    arguments = typing.get_args(annotation)
    if any(isinstance(argument, Tag) and argument.tag == tag for argument in arguments):
        return [arguments[0]]
    return [inner for argument in arguments for inner in _tagged(argument, tag)]


def _literal(model: type[BaseModel], field: str) -> str:
    """The only value that `field` of `model` may have; empty where it is not such a field."""
    allowed = typing.get_args(model.model_fields[field].annotation) if field in model.model_fields else ()
    return str(allowed[0]) if len(allowed) == 1 and isinstance(allowed[0], str) else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every section type in an annotation: optional, union, mapping and annotated ones included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, full key) of every setting that is not itself a section."""
    for name, field in model.model_fields.items():
        below = _models_in(field.annotation)
        if not below:
            yield name, f"{prefix}{name}"
        for section in below:
            yield from _keys(section, f"{prefix}{name}.")

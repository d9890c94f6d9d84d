"""docs/reference/configuration.md: every key of the configuration tree with type, default, limits and description."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import annotated_types
import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deploy.config.tree import Config
from docs.generators.markdown import document, fill, prose
from docs.generators.source import attribute_docstrings, class_docstring
from verifier.builtin.lean.settings import LeanSettings
from verifier.builtin.python.settings import PythonOptions

INTRODUCTION = """
A configuration is one YAML file of sections. Keys are written below as paths: `schedule.steps` is the key `steps` in
the section `schedule`. Unknown keys are refused with the nearest known name, and all values are checked before anything
starts: `sieve config CONFIG` does only that and prints every setting.

Any key can be given in three places, later ones winning: the file, an environment variable
(`SIEVE_SCHEDULE__STEPS=20`: the prefix, then the path in capitals, two underscores for each dot), and
`--set schedule.steps=20` on the command line. Relative paths are taken from the working directory. Only
`model.path` and `data.train` have no default.
"""
OPTIONS: dict[str, type[BaseModel]] = {"python": PythonOptions, "lean": LeanSettings}
"""Verifiers whose `options` are a section of their own."""


def page() -> str:
    """The whole page."""
    parts = [part for name, field in Config.model_fields.items() for part in _section(name, field, 2)]
    for name, options in OPTIONS.items():
        path = f"verifier.serve.{name}.options"
        parts += [f"## `{path}`", *_body(path, options, 3)]
    return document("Configuration", "deploy/config/tree.py", INTRODUCTION, parts)


def _section(path: str, field: FieldInfo, level: int) -> Iterator[str]:
    """Heading and keys of one section; of a union first what its variants share, then each one's own."""
    heading = "#" * min(level, 3)
    models = sections(field.annotation)
    yield f"{heading} `{path}`"
    if len(models) == 1:
        yield from _body(path, models[0], level)
        return
    shared = _shared(models)
    yield from _keys(path, models[0], shared, level)
    for model in models:
        yield f"### `{path}` with {_tag(model)}"
        yield prose(class_docstring(model))
        yield from _keys(
            path, model, [name for name in model.model_fields if name not in shared and not _fixed(model, name)], level
        )


def _body(path: str, model: type[BaseModel], level: int) -> Iterator[str]:
    if text := class_docstring(model):
        yield prose(text)
    yield from _keys(path, model, model.model_fields, level)


def _keys(path: str, model: type[BaseModel], names: typing.Iterable[str], level: int) -> Iterator[str]:
    """The keys `names` of a section, those that are sections themselves last."""
    told = attribute_docstrings(model)
    below = []
    for name in names:
        field = model.model_fields[name]
        key = f"{path}.{name}"
        if sections(field.annotation):
            below.append((f"{key}.<name>" if typing.get_origin(field.annotation) is dict else key, field))
            if field.default is not None:
                continue  # a section with defaults of its own; its keys say everything
        text = describe(field)
        yield f"#### `{key}`"
        yield fill(f"{text[0].upper()}{text[1:]}.")
        if name in told:
            yield prose(told[name])
    for key, field in below:
        yield from _section(key, field, level + 1)


def _shared(models: list[type[BaseModel]]) -> list[str]:
    """The keys that all variants of a union have with the same type, default and description."""
    first, *others = models
    return [
        name
        for name, field in first.model_fields.items()
        if all(name in other.model_fields and describe(other.model_fields[name]) == describe(field) for other in others)
    ]


def _fixed(model: type[BaseModel], name: str) -> bool:
    """Whether the key has one value only, by which its variant is told from the others."""
    annotation = model.model_fields[name].annotation
    return typing.get_origin(annotation) is Literal and len(typing.get_args(annotation)) == 1


def _tag(model: type[BaseModel]) -> str:
    """`name: alpha_dpg` of a variant that one value chooses; of any other its class's name."""
    fixed = [name for name in model.model_fields if _fixed(model, name)]
    if not fixed:
        return "another name, or `factory`"
    return f"`{fixed[0]}: {model.model_fields[fixed[0]].default}`"


def describe(field: FieldInfo) -> str:
    """Type, limits and default of one key in words, for example `integer from 1 to 64, default `8``."""
    text = _type(field.annotation, field.metadata)
    if field.is_required():
        return f"{text}, required"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return text
    if default is None:
        return f"{text}, default `null`"
    return f"{text}, default {_value(default)}"


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The section types in an annotation: optional, union, mapping and annotated ones included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in sections(part)]


def _value(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"`{value}` ({value >> 30} GiB)" if value % (1 << 30) == 0 else f"`{value}` ({value >> 20} MiB)"
    if isinstance(value, tuple | frozenset):
        value = (
            sorted(value) if isinstance(value, frozenset) else [list(v) if isinstance(v, tuple) else v for v in value]
        )
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).strip()
    return f"`{text.removesuffix('...').strip()}`" if text else '`""`'


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
NAMES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path",
         SecretStr: "text (masked wherever it is printed)", type(None): "`null`"}  # fmt: skip


def _type(annotation: Any, metadata: typing.Iterable[Any] = ()) -> str:
    """An annotation in words, with the limits among `metadata`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        text = "any value"
    elif origin is typing.Annotated:
        inner = [
            part for extra in arguments[1:] for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
        return _type(arguments[0], [*inner, *metadata])
    elif origin is Literal:
        text = "one of " + ", ".join(f"`{value}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        parts = sorted(arguments, key=lambda part: part is type(None))
        text = " or ".join(dict.fromkeys(_type(part) for part in parts))
    elif origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        text = "list of " + " and ".join(_type(part) for part in arguments)
    elif origin in (tuple, list, set, frozenset):
        text = f"list ({_type(arguments[0])} each)"
    elif origin is dict:
        text = "section whose keys are yours"
    elif sections(annotation):
        text = "section"
    else:
        text = NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    limits = _limits(metadata)
    return f"{text} {limits}" if limits else text


def _limits(metadata: typing.Iterable[Any]) -> str:
    """Bounds among pydantic's metadata in words."""
    bounds: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            value = getattr(item, name, None)
            if value is None and isinstance(item, annotated_types.Interval):
                continue
            if value is not None:
                bounds[name] = value
    words = []
    if "ge" in bounds and "le" in bounds:
        words.append(f"from {_number(bounds['ge'])} to {_number(bounds['le'])}")
    else:
        for name, text in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
            if name in bounds:
                words.append(f"{text} {_number(bounds[name])}")
        if "gt" in bounds and "le" in bounds:
            words = [f"above {_number(bounds['gt'])}, at most {_number(bounds['le'])}"]
        if "ge" in bounds and "lt" in bounds:
            words = [f"from {_number(bounds['ge'])}, below {_number(bounds['lt'])}"]
    if "pattern" in bounds:
        words.append(f"matching `{bounds['pattern']}`")
    if bounds.get("min_length") == 1:
        words.append("not empty")
    return ", ".join(words)


def _number(value: float) -> str:
    power = value.bit_length() - 1 if isinstance(value, int) and value > 0 else 0
    if power >= 10 and value == 1 << power:
        return f"2{str(power).translate(SUPERSCRIPTS)}" if power > 16 else f"{value}"
    return f"{value:g}" if isinstance(value, float) else f"{value}"

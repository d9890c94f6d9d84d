"""Reader of `.metadata`, in which PyTorch's distributed checkpoints say where each tensor lies.

PyTorch writes the file as a pickle and reads it with `pickle.load`, which runs whatever the file names. Here its
opcodes are read as data: a class is a name, an object its arguments and its state. Nothing is imported or called, and
nothing is hashed or compared by the file's own objects. From that tree the metadata are built anew, with every name,
size and place checked.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from broker.plain_files import read_plain

FILE = ".metadata"
LARGEST = 256 << 20
"""Bytes. An entry takes about 300: enough for a model of a thousand tensors on five hundred ranks."""
_CLASSES = "torch.distributed.checkpoint."
_DATA_FILE = re.compile(r"__[0-9]{1,9}_[0-9]{1,9}\.distcp")
_MOST_DIMENSIONS = 16
_BYTES_OF_A_PART = 16
"""Less than what a part of a tensor takes in the file, unless it refers to the same parts again and again."""
_LONGEST_NAME = 200
"""Characters of a module's name, and of a name in it."""
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class NotMetadata(ValueError):
    """The file does not hold the metadata of a checkpoint, or holds more; the message says what, in one line."""


@dataclass(eq=False, slots=True)
class _Class:
    """A class or function that the file names."""

    name: str


@dataclass(eq=False, slots=True)
class _Object:
    """An instance, or the result of a call, that the file asks for."""

    name: str
    arguments: Any
    state: Any = None


@dataclass(eq=False, slots=True)
class _Pairs:
    """A dictionary, as the pairs that it is made of."""

    items: list[tuple[Any, Any]] = field(default_factory=list)

    def by_name(self) -> dict[str, Any]:
        return {key: value for key, value in self.items if isinstance(key, str)}


_MARK = object()


def read(directory: Path, sizes: Mapping[str, int]) -> Metadata:
    """The metadata in `directory`; `sizes` holds the bytes of each file that they may refer to.

    Raises NotMetadata, OSError.
    """
    data = read_plain(directory / FILE, LARGEST, links=False)
    try:
        return _metadata(_tree(data), sizes, len(data) // _BYTES_OF_A_PART)
    except (IndexError, TypeError, AttributeError, KeyError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, NotMetadata):
            raise
        raise NotMetadata(f"{FILE} does not hold the metadata of a checkpoint ({str(error)[:120]})") from None


def _tree(data: bytes) -> Any:
    """The root of what a pickle describes, made of plain values, _Class, _Object and _Pairs."""
    stack: list[Any] = []
    memo: list[Any] = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _NUMBERS:
            stack.append(argument)
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append(_Pairs())
        elif name == "APPEND":
            last = stack.pop()
            _typed(stack[-1], list).append(last)
        elif name == "APPENDS":
            several = _to_mark(stack)
            _typed(stack[-1], list).extend(several)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _typed(stack[-1], _Pairs).items.append((key, value))
        elif name == "SETITEMS":
            flat = _to_mark(stack)
            _typed(stack[-1], _Pairs).items.extend(zip(flat[::2], flat[1::2], strict=True))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            if max(len(_typed(module, str)), len(_typed(last, str))) > _LONGEST_NAME:
                raise NotMetadata(f"{FILE} names a class in more than {_LONGEST_NAME} characters")
            stack.append(_Class(f"{module}.{last}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, made = stack.pop(), stack.pop()
            stack.append(_Object(_known(_typed(made, _Class).name), arguments))
        elif name == "BUILD":
            state = stack.pop()
            _typed(stack[-1], _Object).state = state
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise NotMetadata(f"{FILE} holds {name}, which the metadata of a checkpoint do not have")
    raise NotMetadata(f"{FILE} ends early")


_MADE = {
    "torch.Size",
    "torch.serialization._get_layout",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    _CLASSES + "filesystem._StorageInfo",
    *(
        f"{_CLASSES}metadata.{name}"
        for name in (
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
"""What the file of a checkpoint may ask to be made."""


def _known(name: str) -> str:
    if name not in _MADE:
        raise NotMetadata(
            f"{FILE} asks for {name[:120]!r}, which the metadata of a checkpoint never do: it may be hostile"
        )
    return name


def _to_mark(stack: list[Any]) -> list[Any]:
    """Everything above the last mark, taken off the stack together with the mark."""
    above: list[Any] = []
    while (last := stack.pop()) is not _MARK:
        above.append(last)
    return above[::-1]


# --- from the tree to PyTorch's classes


def _metadata(root: Any, sizes: Mapping[str, int], most_parts: int) -> Metadata:
    """The metadata that a tree describes. A tree is small where it refers to one object often; what is built is not."""
    fields = _fields(root, "metadata.Metadata")
    tensors: dict[str, Any] = {}
    for name, entry in _typed(fields["state_dict_metadata"], _Pairs).items:
        tensors[_typed(name, str)] = found = _entry(entry, most_parts)
        most_parts -= len(found.chunks) if isinstance(found, TensorStorageMetadata) else 0
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, place in _typed(fields["storage_data"], _Pairs).items:
        index = _fields(key, "metadata.MetadataIndex")
        offset = index.get("offset")
        number = index.get("index")
        where = MetadataIndex(
            _typed(index["fqn"], str),
            None if offset is None else _size(offset),
            None if number is None else _count(number),
        )
        places[where] = _place(_fields(place, "filesystem._StorageInfo"), sizes)
    version = fields.get("version")
    # The names of the parts of each key: `model.layers.0` may be one key or three. PyTorch needs them where it makes
    # a state dictionary of its own, which nothing here asks for.
    return Metadata(tensors, storage_data=places, version=version if isinstance(version, str) else None)


def _entry(entry: Any, most_parts: int) -> TensorStorageMetadata | BytesStorageMetadata:
    if _typed(entry, _Object).name == f"{_CLASSES}metadata.BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _fields(entry, "metadata.TensorStorageMetadata")
    size = _size(fields["size"])
    chunks = []
    if len(_typed(fields["chunks"], list)) > most_parts:
        raise NotMetadata(f"{FILE} has more parts of tensors than its bytes can describe")
    for chunk in fields["chunks"]:
        part = _fields(chunk, "metadata.ChunkStorageMetadata")
        offsets, lengths = _size(part["offsets"]), _size(part["sizes"])
        inside = all(at + length <= whole for at, length, whole in zip(offsets, lengths, size, strict=True))
        if not inside:
            raise NotMetadata(f"{FILE} has a part at {tuple(offsets)} of {tuple(lengths)} in a tensor of {tuple(size)}")
        chunks.append(ChunkStorageMetadata(offsets, lengths))
    properties = _typed(fields["properties"], _Object)
    if properties.name != f"{_CLASSES}metadata.TensorProperties":
        raise NotMetadata(f"{FILE} has {properties.name} in place of a tensor's properties")
    return TensorStorageMetadata(TensorProperties(dtype=_dtype(_typed(properties.state, tuple)[0])), size, chunks)


def _place(fields: Mapping[str, Any], sizes: Mapping[str, int]) -> _StorageInfo:
    """Where an entry lies: a part of a file of the checkpoint, as it is."""
    name, offset, length = _typed(fields["relative_path"], str), _count(fields["offset"]), _count(fields["length"])
    if name not in sizes or not _DATA_FILE.fullmatch(name):
        raise NotMetadata(f"{FILE} refers to {name[:120]!r}, which is no data file of this checkpoint")
    if offset + length > sizes[name]:
        raise NotMetadata(f"{FILE} refers to bytes {offset} … {offset + length} of {name}, which has {sizes[name]}")
    if fields.get("transform_descriptors"):
        raise NotMetadata(f"{FILE} names a transformation of {name}, and this release writes none")
    return _StorageInfo(name, offset, length)


def _fields(value: Any, name: str) -> dict[str, Any]:
    """The attributes of an object of one of PyTorch's classes."""
    found = _typed(value, _Object)
    if found.name != _CLASSES + name:
        raise NotMetadata(f"{FILE} has {found.name} where {name} belongs")
    state: _Pairs = _typed(found.state, _Pairs)
    return state.by_name()


def _size(value: Any) -> torch.Size:
    found = _typed(value, _Object)
    if found.name != "torch.Size":
        raise NotMetadata(f"{FILE} has {found.name} where a size belongs")
    numbers = [_count(number) for number in _typed(found.arguments, tuple)[0]] if found.arguments else []
    if len(numbers) > _MOST_DIMENSIONS or math.prod(numbers) >= 1 << 62:
        raise NotMetadata(f"{FILE} has a tensor of {len(numbers)} dimensions, {numbers[:4]} …")
    return torch.Size(numbers)


def _dtype(value: Any) -> torch.dtype:
    found = getattr(torch, _typed(value, _Class).name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise NotMetadata(f"{FILE} has {value.name[:120]!r} where a type of numbers belongs")
    return found


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise NotMetadata(f"{FILE} has {str(value)[:40]} where a count belongs")
    return value


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise NotMetadata(
            f"{FILE} has a {type(value).__name__.lstrip('_')} where a {kind.__name__.lstrip('_')} belongs"
        )
    return value

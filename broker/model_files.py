"""What a model directory may hold when it comes from somebody else: plain files of bounded size that fit each other.

Looked at before transformers or vLLM reads it, by every service that opens `model.path`. Reads the directory's names,
the JSON files and the headers of the tensors; imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from broker.plain_files import check_plain, open_plain, read_plain

CONFIG, INDEX, ADAPTER = "config.json", "model.safetensors.index.json", "adapter_config.json"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
"""A file name without a separator, not hidden, so that it cannot stand for a file elsewhere."""
JSON_BYTES = 16 << 20
READ = {
    **dict.fromkeys((CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"), JSON_BYTES),
    **dict.fromkeys(("added_tokens.json", "vocab.json", "chat_template.json", "processor_config.json"), JSON_BYTES),
    "tokenizer.json": 512 << 20,
}
"""The JSON files that transformers and vLLM read, and the most bytes that each may have."""
TEXTS = {".jinja": JSON_BYTES, **dict.fromkeys((".json", ".txt", ".model", ".tiktoken"), 512 << 20)}
"""The most bytes of other files that transformers and vLLM read whole, by their names' ends."""
TEMPLATES = "additional_chat_templates"
"""The one folder in a model directory that transformers reads."""
HEADER_BYTES = 100_000_000
"""As safetensors itself limits the header of a file."""
LARGEST = 1 << 31
"""Above all numbers in the configurations of models."""
WEIGHTS_THAT_RUN = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Weights as pickles, which run what they name."""

_DIMENSIONS = re.compile(
    r"(vocab|hidden|intermediate|ffn|inner|model|embedding)_(size|dim)|n_(embd|inner|layer|head|positions|ctx)|head_dim"
    r"|d_(model|ff|kv)|num_(hidden_layers|layers|attention_heads|key_value_heads|heads|experts|local_experts)"
    r"|max_position_embeddings|n_routed_experts"
)
"""Numbers that say how large a tensor or a list of layers is."""
_ATTENTIONS = (None, "eager", "sdpa", "flex_attention")
"""Implementations of attention that are transformers' own; other names are those of packages and of code on the Hub."""
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.([0-9]{1,6})\.")


def problem_of(directory: Path, *, headers: bool = True) -> str | None:
    """The first reason why a model directory must not be loaded, in one line with the remedy; None if there is none.

    A missing file is none: whoever needs it says so. Without `headers` the files of tensors are not opened.
    """
    try:
        return next((f"model.path = {directory}: {problem}" for problem in _problems(directory, headers)), None)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        return f"model.path = {directory}: {name} {error.strerror}; copy the model there again, as files"


def shards(directory: Path, stem: str = "model") -> list[Path]:
    """`<stem>.safetensors`, or the files that its index names: regular files of this directory, which all exist.

    Raises ValueError for an index that is none or names another file, OSError.
    """
    index = directory / f"{stem}.safetensors.index.json"
    names: Iterable[Any] = [f"{stem}.safetensors"]
    if index.exists() or index.is_symlink():
        body = _json(index, JSON_BYTES)
        listed = body.get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{index.name} has no weight_map")
        names = set(listed.values()) if all(isinstance(name, str) for name in listed.values()) else [None]
    for name in names:
        if not isinstance(name, str) or not PLAIN.fullmatch(name) or not name.endswith(".safetensors"):
            raise ValueError(f"{index.name} names {str(name)[:80]!r}, which is no *.safetensors file beside it")
    found = [directory / name for name in sorted(names)]
    for path in found:
        check_plain(path)
    return found


def tensors(path: Path) -> dict[str, list[int]]:
    """Name and shape of each tensor in a safetensors file, from its header. Raises ValueError, OSError."""
    with open_plain(path) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES + 1
        if length > HEADER_BYTES:
            raise ValueError(f"{path.name} is not in the format of safetensors")
        header = _parsed(path.name, file.read(length))
    found: dict[str, list[int]] = {}
    for name, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if name == "__metadata__":
            continue
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
            raise ValueError(f"{path.name} has no shape for {name[:80]!r}")
        found[name] = shape
    return found


def _problems(directory: Path, headers: bool) -> Iterator[str]:
    if not directory.is_dir():
        return
    yield from _foreign_files(directory, directory)
    if (directory / TEMPLATES).is_dir():
        yield from _foreign_files(directory, directory / TEMPLATES)
    if (directory / ADAPTER).exists():
        yield (
            f"{ADAPTER} makes this an adapter, whose base model would be loaded from wherever it says; name the "
            f"base model's directory, or merge the adapter into it with `sieve export`"
        )
    config: dict[str, Any] = {}
    for name, most in READ.items():
        path = directory / name
        try:
            body = _json(path, most)
        except FileNotFoundError:
            continue
        except ValueError as error:
            yield f"{error}; copy the model there again"
            continue
        config = body if name == CONFIG else config
    yield from _chosen_code(config)
    yield from _pickles(directory)
    if headers:
        yield from _weights(directory, config)


def _foreign_files(directory: Path, folder: Path) -> Iterator[str]:
    """Names in a folder that stand for no regular file or directory, for one outside the model, or for endless text."""
    root = directory.resolve()
    # In the cache of the Hugging Face Hub a model's files are links to <model>/blobs.
    inside = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink():
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError):
                yield f"{path.name} is a symbolic link to nothing; copy the file itself there"
                continue
            if not any(target.is_relative_to(one) for one in inside):
                yield f"{path.name} is a symbolic link out of the directory; copy the file itself there"
        if not path.is_dir():
            size, most = check_plain(path).st_size, TEXTS.get(path.suffix)
            if most is not None and size > most:
                yield f"{path.name} has {size} bytes, at most {most} are read; copy the model there again"


def _chosen_code(config: dict[str, Any]) -> Iterator[str]:
    """Choices of code and of files that belong to whoever loads the model, in a configuration and its sections."""
    sections = [config]
    while sections:
        for name, value in sections.pop().items():
            several = value.values() if isinstance(value, dict) else [value]
            if name.lstrip("_").startswith("attn_implementation") and any(one not in _ATTENTIONS for one in several):
                yield f"{name} = {str(value)[:80]!r} in {CONFIG} chooses code from elsewhere; remove it there"
            elif name == "transformers_weights" and value is not None:
                yield f"{name} = {str(value)[:80]!r} in {CONFIG} names other weights; name them model.safetensors"
            elif isinstance(value, dict):
                sections.append(value)


def _pickles(directory: Path) -> Iterator[str]:
    pickled = sorted(path.name for pattern in WEIGHTS_THAT_RUN for path in directory.glob(pattern))
    if pickled and not list(directory.glob("*.safetensors")):
        yield (
            f"{pickled[0]} is a pickle, which would run what it names, and is never read; save the model as "
            f"safetensors: save_pretrained(…, safe_serialization=True)"
        )


def _weights(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    """Problems of the tensors, and of the sizes that the configuration claims of them."""
    try:
        stored = {name: shape for path in shards(directory) for name, shape in tensors(path).items()}
    except FileNotFoundError:
        return
    except ValueError as error:
        yield f"{error}; copy the model there again"
        return
    elements = sum(math.prod(shape) for shape in stored.values())
    layers = 1 + max((int(found[1]) for name in stored if (found := _LAYER.search(name))), default=elements)
    for where, part in (("", config), ("text_config.", config.get("text_config"))):
        if isinstance(part, dict):
            yield from _sizes(where, part, elements, layers)


def _sizes(where: str, config: dict[str, Any], elements: int, layers: int) -> Iterator[str]:
    """Claims that the files do not bear out, for which memory would be taken before the files are read."""
    remedy = f"correct {CONFIG}, or copy the model there again"
    for name, value in config.items():
        if isinstance(value, float | int) and not isinstance(value, bool) and not -LARGEST < value < LARGEST:
            yield f"{where}{name} = {str(value)[:40]} in {CONFIG}: larger than any number of a model; {remedy}"
        if _DIMENSIONS.fullmatch(name) and value is not None and (type(value) is not int or value < 1):
            yield f"{where}{name} = {str(value)[:40]!r} in {CONFIG}: must be a whole number from 1; {remedy}"
    width = config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or 1
    for name in ("vocab_size", "intermediate_size", "n_inner", "n_positions"):
        claimed = (config.get(name) or 1) * width
        if claimed > max(elements, 1):
            yield (
                f"{where}{name} = {config[name]} in {CONFIG}: a tensor of {claimed} numbers, and all files hold "
                f"{elements}; {remedy}"
            )
    for name in ("num_hidden_layers", "n_layer"):
        if (config.get(name) or 0) > layers:
            yield f"{where}{name} = {config[name]} in {CONFIG}: the files hold {layers} layers; {remedy}"
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    size = heads * (config.get("head_dim") or 1) * width
    if size > max(elements, 1):
        yield f"{where}{heads} heads in {CONFIG}: a tensor of {size} numbers, and all files hold {elements}; {remedy}"


def _json(path: Path, most: int) -> dict[str, Any]:
    body = _parsed(path.name, read_plain(path, most))
    if not isinstance(body, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return body


def _parsed(name: str, data: bytes) -> Any:
    def constant(text: str) -> Any:
        raise ValueError(f"{text} is no number")

    try:
        return json.loads(data, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({str(error)[:120]})") from None

"""Content hashes of a base model and of prompts, independent of where their files are.

Runs with equal hashes start from the same model and prompts, so that the result of one can be used for the other. Reads
files; never imports torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from broker.plain_files import open_plain
from broker.settings import PromptSource

SAMPLE_BYTES = 1 << 20
"""Read from each end of a weights file to tell models apart without reading all of it."""


def of_model(path: Path) -> bytes:
    """Names, sizes and ends of a model directory's weights and configuration, hashed. Raises OSError."""
    files = sorted([*path.glob("*.safetensors"), path / "config.json"])
    return b"".join(file.name.encode() + _ends(file) for file in files)


def of_prompts(source: PromptSource) -> bytes:
    """Hash of a file of prompts; a dataset loaded by name is its name. Raises OSError."""
    if isinstance(source, str):
        return hashlib.sha256(source.encode()).digest()
    with open_plain(source) as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _ends(file: Path) -> bytes:
    """Hash of a file's size and its first and last megabyte."""
    size = file.stat().st_size
    with open_plain(file) as stream:
        digest = hashlib.sha256(size.to_bytes(8, "little") + stream.read(SAMPLE_BYTES))
        stream.seek(max(0, size - SAMPLE_BYTES))
        digest.update(stream.read())
    return digest.digest()

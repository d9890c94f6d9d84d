"""What a published version consists of: the manifest that is written last and that every reader checks files against.

Holds the type and its reading from untrusted bytes; opens nothing.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import WeightsCorrupt

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20
REMEDY = "have the learner publish again, or look for a full disk or another writer"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

Name = Annotated[str, Field(pattern=rf"^{PLAIN.pattern}$")]
"""A plain file name: no separator, not hidden, so that a manifest cannot name a file outside its directory."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class File(BaseModel):
    """One file as it was when it was published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Delta(BaseModel):
    """A hidden file beside the others that makes this version out of an earlier one (delta.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Annotated[int, Field(ge=0)]
    identity: Sha256
    """`Manifest.identity` of the base: a version number alone may have been given twice."""
    bytes: Annotated[int, Field(ge=1)]


class Manifest(BaseModel):
    """What a published version consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    version: Annotated[int, Field(ge=0)]
    published_at: float
    """Unix seconds."""
    files: Annotated[dict[Name, File], Field(min_length=1)]
    meta: dict[str, Any] = {}
    """The writer's own: step, dtype …"""
    delta: Delta | None = None

    @property
    def identity(self) -> str:
        """SHA-256 over all files' names and contents: equal exactly for the same weights."""
        listed = "".join(f"{file.sha256} {file.bytes} {name}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all files together, the delta not counted."""
        return sum(file.bytes for file in self.files.values())

    def text(self) -> str:
        """As it is written: JSON."""
        return self.model_dump_json(indent=1, exclude=None if self.delta else {"delta"})


def parse(data: bytes, version: int, path: Path) -> Manifest:
    """The manifest of `version` from what `path` holds. Raises WeightsCorrupt, naming the first thing wrong."""
    if len(data) > MANIFEST_BYTES:
        raise WeightsCorrupt(f"{path}: expected at most {MANIFEST_BYTES} bytes, found more; {REMEDY}")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"]) or "the whole"
        raise WeightsCorrupt(f"{path}: expected a manifest, found {where}: {first['msg'][:160]}; {REMEDY}") from None
    if manifest.version != version:
        raise WeightsCorrupt(f"{path}: expected version {version}, found {manifest.version}; {REMEDY}")
    return manifest

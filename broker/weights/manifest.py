"""Manifest of a published version: the file that is written last and that every reader checks the others against.

Defines the type and parses it from untrusted bytes; opens no file.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from broker.errors import WeightsCorrupt
from broker.queue.state import VersionName

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20
SCHEMA = 2
"""Version of the manifest's format, and of the delta's (delta.py). Raised with every incompatible change."""
REMEDY = "have the learner publish again, or look for a full disk or another writer"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

Name = Annotated[str, Field(pattern=rf"^{PLAIN.pattern}$")]
"""A plain file name: no separator, not hidden, so that a manifest cannot name a file outside its directory."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class File(BaseModel):
    """Size and hash of one file of a version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Delta(BaseModel):
    """Description of the hidden file from which this version can be rebuilt out of an earlier one (delta.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Annotated[int, Field(ge=0)]
    """Number of the version that the delta is applied to."""
    base_epoch: Annotated[int, Field(ge=0)]
    """Its epoch."""
    identity: Sha256
    """Its `Manifest.identity`."""
    bytes: Annotated[int, Field(ge=1)]

    @property
    def base_name(self) -> VersionName:
        """Name of the version that the delta is applied to."""
        return VersionName(self.base, self.base_epoch)


class Manifest(BaseModel):
    """Contents of a published version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_number: Annotated[int, Field(ge=SCHEMA, le=SCHEMA, alias="schema")] = SCHEMA
    version: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    """The learner's epoch in which it was written."""
    published_at: float
    """Unix seconds."""
    files: Annotated[dict[Name, File], Field(min_length=1)]
    meta: dict[str, Any] = {}
    """Whatever the writer adds: optimiser step, dtype, …"""
    delta: Delta | None = None

    @property
    def name(self) -> VersionName:
        """Number and epoch."""
        return VersionName(self.version, self.epoch)

    @property
    def identity(self) -> str:
        """SHA-256 over all files' names and contents: equal exactly for the same weights."""
        listed = "".join(f"{file.sha256} {file.bytes} {name}\n" for name, file in sorted(self.files.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all files together, without the delta."""
        return sum(file.bytes for file in self.files.values())

    def text(self) -> str:
        """The JSON that is written to `manifest.json`."""
        return self.model_dump_json(indent=1, by_alias=True, exclude=None if self.delta else {"delta"})

    def check(self, name: str, sha256: str, location: str) -> None:
        """Raise WeightsCorrupt unless `sha256` is the hash of the file `name`; `location` is the version's, for the
        message."""
        expected = self.files[name].sha256
        if sha256 != expected:
            raise WeightsCorrupt(f"{location}/{name}: expected sha256 {expected[:16]}…, found {sha256[:16]}…; {REMEDY}")


def parse(data: bytes, name: VersionName, location: str) -> Manifest:
    """The manifest of version `name` from the content of the file at `location`.

    Raises WeightsCorrupt, naming the first thing wrong; also for a manifest of another schema.
    """
    if len(data) > MANIFEST_BYTES:
        raise WeightsCorrupt(f"{location}: expected at most {MANIFEST_BYTES} bytes, found more; {REMEDY}")
    try:
        document = from_json(data)
    except ValueError as error:
        raise WeightsCorrupt(f"{location}: expected a manifest, found no JSON ({str(error)[:160]}); {REMEDY}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise WeightsCorrupt(
            f"{location}: expected a manifest of schema {SCHEMA}, which this release reads, found schema "
            f"{str(schema)[:16]}; run the learner and all actors with one release of sieve, and publish the version "
            f"again with it"
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"])
        raise WeightsCorrupt(
            f"{location}: expected a manifest, found {where}: {first['msg'][:160]}; {REMEDY}"
        ) from None
    if manifest.name != name:
        raise WeightsCorrupt(f"{location}: expected version {name}, found {manifest.name}; {REMEDY}")
    return manifest

"""The content hash of a judgement: equal exactly when the same verifier is asked the same question about the same text.

It covers the verifier's name, version, options, factory and fingerprint (of tools it calls: a toolchain), the record
and the answer. Pure; where such a verdict is kept is the broker's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from verifier.verdicts import Verifier

_SCHEMA = "1"


class Content:
    """Hashes for one verifier as it is set up here."""

    def __init__(self, verifier: Verifier, options: Mapping[str, Any], factory: str | None) -> None:
        """`verifier.fingerprint`, where it has one, names what else decides: versions of the tools that it calls."""
        fingerprint = str(getattr(verifier, "fingerprint", ""))
        self._asker = _bytes([_SCHEMA, verifier.name, verifier.version, fingerprint, factory or "", dict(options)])

    def key(self, record: Mapping[str, Any], answer: str) -> bytes:
        """32 bytes. A list counts like a tuple (the wire makes one the other); the order of fields does not count."""
        digest = hashlib.sha256()
        for part in (self._asker, _bytes(record), answer.encode("utf-8", "surrogatepass")):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()


def _bytes(value: Any) -> bytes:
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """`value` with everything JSON lacks spelled so that it cannot be mistaken for something else."""
    if isinstance(value, Mapping):
        # Marked and with typed keys: {1: x} is not {"1": x}, and no mapping looks like the bytes below.
        return {"m": sorted(([_plain(key), _plain(item)] for key, item in value.items()), key=json.dumps)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"s": str(value)}

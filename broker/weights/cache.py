"""Verified copies of versions on the reader's own machine, shared by its actors. Knows no engine, writes no version.

    <cache>/v00000007/…                         as published, but for the delta; nothing else is ever loaded
    <cache>/.v00000007.partial.<identity>/      a copy under way: whoever comes next continues it
    <cache>/.v00000007.rebuilt.<identity>/      the same, from a base held here and a delta
    <cache>/.lock                               held by the one process that copies, and by no dead one

A version is copied once by whichever reader comes first; the others wait and then verify what they find, because each
reader answers for what it loads. Bytes of a copy that was cut off are hashed, not trusted: if the whole does not match
the manifest, the file is copied again from its beginning.

A copy stays while a process holds it (a shared lock on its directory, from one `bring` to the next, so that the kernel
lets go for the dead) or while it is the newest here that is still published. All others are removed after each copy.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from broker.errors import WeightsCorrupt, WeightsError, WeightsMissing
from broker.weights.copying import Tally, copy, each, save
from broker.weights.delta import DeltaUnusable, Fallback, apply
from broker.weights.manifest import MANIFEST, Delta, Manifest
from broker.weights.reader import Published, place, versions
from broker.weights.store import DELTA_SHARE, HIDDEN, Fetched, WeightsDirectory

WAIT_SECONDS = 1800.0
"""For another process's copy: a model of 100 GB at 60 MB/s."""
POLL_SECONDS = 0.05


class WeightsCache:
    """Copies of `weights` under `path`; one object per process and one thread that calls `bring`."""

    def __init__(self, weights: WeightsDirectory, path: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
        if path.resolve().is_relative_to(weights.path.resolve()):
            raise WeightsError(
                f"weights.cache = {path} lies in the published weights' own directory {weights.path}, where the "
                f"learner deletes; give a directory of this machine, or remove the key to read in place"
            )
        self.path = path
        self._weights, self._wait_seconds = weights, wait_seconds
        self._held: Published | None = None

    def bring(self, version: int) -> Fetched:
        """A copy of `version` here, every byte of it checked; it stays until the next call has another.

        Raises WeightsMissing and WeightsCorrupt as WeightsDirectory.fetch (the published files are meant), WeightsError
        when another process copies for longer than `wait_seconds`, OSError when the disk is full.
        """
        start, tally = time.perf_counter(), Tally()
        fallback: Fallback | None = None
        with self._weights.open(version) as source:
            while True:
                here = self._hold(source.manifest)
                if here is None:
                    with self._alone(tally):
                        here = self._hold(source.manifest)
                        if here is None:
                            fallback = self._make(source, tally)
                            break
                try:
                    here.verify(tally)
                    self._keep(here)
                    break
                except (WeightsCorrupt, WeightsMissing):
                    with here, self._alone(tally):
                        self._discard(here)
        assert self._held is not None
        return Fetched(version, self._held.path, tally.shares(time.perf_counter() - start), tally.bytes, fallback)

    def close(self) -> None:
        """Let others remove what was held."""
        if self._held is not None:
            self._held.close()
            self._held = None

    # --- making a copy; everything below but `_hold` only while `_alone`

    def _make(self, source: Published, tally: Tally) -> Fallback | None:
        """Rebuild or copy the version, hold it, remove what nobody needs. Returns Fetched.fallback."""
        manifest = source.manifest
        fallback: Fallback | None = None
        if manifest.delta is None or self._hidden(manifest, "partial").exists():
            self._copy(source, tally)
        else:
            try:
                self._rebuild(source, tally, int(manifest.bytes * DELTA_SHARE))
            except DeltaUnusable as unusable:
                fallback = unusable.reason
                self._copy(source, tally)
        here = self._hold(manifest)
        if here is None:
            raise WeightsError(f"{place(self.path, manifest.version)} vanished; keep others out of {self.path}")
        self._keep(here)
        self._sweep(manifest.version)
        return fallback

    def _copy(self, source: Published, tally: Tally) -> None:
        """The published files, continued where a copy of them was cut off."""
        partial = self._hidden(source.manifest, "partial")
        partial.mkdir(exist_ok=True)

        def one(name: str, mine: Tally) -> None:
            expected, path = source.manifest.files[name], partial / name
            with source.file(name) as file:
                found = copy(file, path, expected.bytes, mine)
                if found != expected.sha256 and mine.bytes["kept"]:
                    mine.bytes["kept"] = 0
                    path.unlink()
                    file.seek(0)
                    found = copy(file, path, expected.bytes, mine)
            if found != expected.sha256:
                path.unlink()
            source.compare(name, found)

        each(source.manifest.files, one, tally)
        self._settle(partial, source.manifest)

    def _rebuild(self, source: Published, tally: Tally, allowance: int) -> None:
        """The version from its delta and its base, which may need a delta too: `allowance` bytes of them in all.

        Raises DeltaUnusable when that cannot be, or gives something else than what was published.
        """
        manifest, delta = source.manifest, source.manifest.delta
        if delta is None or delta.bytes > allowance:
            raise DeltaUnusable(f"version {source.version} has no delta of at most {allowance} bytes", "base")
        rebuilt = self._hidden(manifest, "rebuilt")
        with self._base(delta, tally, allowance - delta.bytes) as base:
            shutil.rmtree(rebuilt, ignore_errors=True)
            rebuilt.mkdir()
            try:
                with source.delta() as stream:
                    for name, file in sorted(manifest.files.items()):
                        old = base.manifest.files.get(name)
                        with base.file(name) if old else nullcontext() as before:
                            source.compare(name, save(apply(stream, before, file.bytes), rebuilt / name, tally))
                    if stream.read(1):
                        raise DeltaUnusable("the delta goes on after its last file")
            except WeightsCorrupt as error:
                raise DeltaUnusable(str(error)) from None
        tally.bytes["delta"] += delta.bytes
        self._settle(rebuilt, manifest)

    def _base(self, delta: Delta, tally: Tally, allowance: int) -> Published:
        """The delta's base, here already or made here now."""
        for made in (False, True):
            with suppress(WeightsMissing, WeightsCorrupt):
                here = Published(self.path, delta.base)
                if here.manifest.identity == delta.identity:
                    return here
                here.close()
            if not made:
                with suppress(WeightsMissing, WeightsCorrupt), self._weights.open(delta.base) as source:
                    self._rebuild(source, tally, allowance)
        raise DeltaUnusable(f"version {delta.base} is not in {self.path}", "base")

    def _settle(self, directory: Path, manifest: Manifest) -> None:
        """A finished copy becomes visible."""
        (directory / MANIFEST).write_text(manifest.text(), encoding="utf-8")
        final = place(self.path, manifest.version)
        if final.exists():  # other weights of this number, or a copy without a manifest
            self._remove(final)
        os.rename(directory, final)

    # --- who needs what

    def _hold(self, manifest: Manifest) -> Published | None:
        """The copy of exactly these weights, kept from removal until it is closed; None if there is none."""
        try:
            here = Published(self.path, manifest.version)
        except (WeightsMissing, WeightsCorrupt):
            return None
        with suppress(BlockingIOError, WeightsMissing):  # somebody is just removing it
            fcntl.flock(here.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            here.still_there()
            if here.manifest.identity == manifest.identity:
                return here
        here.close()
        return None

    def _keep(self, here: Published) -> None:
        self.close()
        self._held = here

    def _sweep(self, version: int) -> None:
        """Remove all copies but that of `version`, the newest that is still published, and those that are held."""
        here = versions(self.path)
        newest = max(set(here) & set(self._weights.versions()), default=version)
        for other in set(here) - {version, newest}:
            descriptor = os.open(place(self.path, other), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(place(self.path, other))
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)
        for entry in self.path.iterdir():
            if HIDDEN.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)

    def _discard(self, here: Published) -> None:
        with suppress(WeightsMissing):
            here.still_there()
            self._remove(here.path)

    def _remove(self, final: Path) -> None:
        gone = final.with_name(f".{final.name}.gone.{secrets.token_hex(4)}")
        os.rename(final, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _hidden(self, manifest: Manifest, what: str) -> Path:
        return self.path / f".v{manifest.version:08d}.{what}.{manifest.identity[:8]}"

    @contextmanager
    def _alone(self, tally: Tally) -> Iterator[None]:
        """Among all processes with this cache. Raises WeightsError at the deadline."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        with open(path, "wb") as lock:
            tally.timed("fetch", lambda: self._wait(lock.fileno(), path))
            yield

    def _wait(self, lock: int, path: Path) -> None:
        deadline = time.monotonic() + self._wait_seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WeightsError(
                        f"another process has held {path} for {self._wait_seconds:g} s, copying weights: look for a "
                        f"stuck file system, or give this actor a weights.cache of its own"
                    ) from None
            time.sleep(POLL_SECONDS)

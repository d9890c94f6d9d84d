"""Verified copies of versions on the reader's own machine, shared by all actors there (`weights.cache`).

    <cache>/v00000007-e0002/…                   a finished copy, without the delta; nothing else is ever loaded
    <cache>/.v00000007-e0002.partial.<identity>/ a copy in progress, continued by the next reader if it is interrupted
    <cache>/.v00000007-e0002.rebuilt.<identity>/ a version being rebuilt from a copy held here and a delta
    <cache>/.lock                               file lock of the one process that copies; a dead process holds none

The first reader that needs a version copies it; the others wait, then verify the copy, because each reader answers for
what it loads. The bytes of an interrupted copy are hashed, not trusted: if the whole file does not match the manifest,
it is copied again from its beginning.

A copy stays as long as a process holds it (a shared lock on its directory from one `fetch` to the next, which the
kernel releases when the process dies) or it is the newest one here that is still published. All others are removed
after each copy.
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
from broker.queue.state import VersionName
from broker.weights.copying import CopyStats, copy, for_each, save
from broker.weights.delta import LARGEST_SHARE, DeltaUnusable, Fallback, apply
from broker.weights.manifest import MANIFEST, Delta, Manifest
from broker.weights.reader import HIDDEN, DirectoryReader, version_path, versions_in
from broker.weights.store import Fetched, VersionReader, VersionStore

WAIT_SECONDS = 1800.0
"""For another process's copy: a model of 100 GB at 60 MB/s."""
POLL_SECONDS = 0.05


class WeightsCache:
    """Copies in the directory `path` of the versions in `store`. One object per process, used by one thread.

    Raises WeightsError when `path` is inside the store's own directory.
    """

    def __init__(self, store: VersionStore, path: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
        if store.path is not None and path.resolve().is_relative_to(store.path.resolve()):
            raise WeightsError(
                f"weights.cache = {path} lies in the published weights' own directory {store.path}, where the learner "
                f"deletes; give a directory of this machine, or remove the key to read in place"
            )
        self.path = path
        self._store, self._wait_seconds = store, wait_seconds
        self._held: DirectoryReader | None = None

    def fetch(self, name: VersionName) -> Fetched:
        """A copy of version `name` in this cache, every byte of it checked; it stays until the next call has returned.

        Raises WeightsMissing and WeightsCorrupt as VersionStore.fetch (about the published files), WeightsError when
        another process copies for longer than `wait_seconds`, OSError when the disk is full.
        """
        start, stats = time.perf_counter(), CopyStats()
        fallback: Fallback | None = None
        with self._store.open(name) as source:
            while True:
                here = self._hold(source.manifest)
                if here is None:
                    with self._locked(stats):
                        here = self._hold(source.manifest)
                        if here is None:
                            fallback = self._create(source, stats)
                            break
                try:
                    here.verify(stats)
                    self._keep(here)
                    break
                except (WeightsCorrupt, WeightsMissing):
                    with here, self._locked(stats):
                        self._discard(here)
        assert self._held is not None
        seconds = stats.shares(time.perf_counter() - start)
        identity = self._held.manifest.identity
        return Fetched(name.number, identity, self._held.path, seconds, stats.bytes, fallback)

    def close(self) -> None:
        """Release the copy that is held, so that other processes may remove it."""
        if self._held is not None:
            self._held.close()
            self._held = None

    # --- making a copy; everything below except `_hold` and `_keep` is called with the lock held

    def _create(self, source: VersionReader, stats: CopyStats) -> Fallback | None:
        """Rebuild or copy the version, hold it, and remove copies that nobody needs. Returns Fetched.fallback."""
        manifest = source.manifest
        fallback: Fallback | None = None
        if manifest.delta is None or self._hidden(manifest, "partial").exists():
            self._copy(source, stats)
        else:
            try:
                self._rebuild(source, stats, int(manifest.bytes * LARGEST_SHARE))
            except DeltaUnusable as unusable:
                fallback = unusable.reason
                self._copy(source, stats)
        here = self._hold(manifest)
        if here is None:
            raise WeightsError(
                f"{version_path(self.path, manifest.name)} vanished while it was copied; let nothing else write to "
                f"{self.path}"
            )
        self._keep(here)
        self._evict(manifest.name)
        return fallback

    def _copy(self, source: VersionReader, stats: CopyStats) -> None:
        """Copy the published files, continuing an interrupted copy."""
        partial = self._hidden(source.manifest, "partial")
        partial.mkdir(exist_ok=True)

        def one(name: str, own: CopyStats) -> None:
            expected, path = source.manifest.files[name], partial / name
            with source.file(name) as file:
                found = copy(file, path, expected.bytes, own)
                if found != expected.sha256 and own.bytes["kept"]:
                    own.bytes["kept"] = 0
                    path.unlink()
                    file.seek(0)
                    found = copy(file, path, expected.bytes, own)
            if found != expected.sha256:
                path.unlink()
            source.manifest.check(name, found, source.location)

        for_each(source.manifest.files, one, stats)
        self._finish(partial, source.manifest)

    def _rebuild(self, source: VersionReader, stats: CopyStats, allowance: int) -> None:
        """Rebuild the version from its delta and its base, which may itself be rebuilt: at most `allowance` bytes of
        deltas in all.

        Raises DeltaUnusable when that is not possible, or does not give what was published.
        """
        manifest, delta = source.manifest, source.manifest.delta
        if delta is None or delta.bytes > allowance:
            raise DeltaUnusable(f"version {source.name} has no delta of at most {allowance} bytes", "base")
        rebuilt = self._hidden(manifest, "rebuilt")
        with self._base(delta, stats, allowance - delta.bytes) as base:
            shutil.rmtree(rebuilt, ignore_errors=True)
            rebuilt.mkdir()
            try:
                with source.delta() as stream:
                    for name, file in sorted(manifest.files.items()):
                        old = base.manifest.files.get(name)
                        with base.file(name) if old else nullcontext() as before:
                            found = save(apply(stream, before, file.bytes), rebuilt / name, stats)
                            manifest.check(name, found, source.location)
                    if stream.read(1):
                        raise DeltaUnusable("the delta has more bytes than its files need")
            except WeightsCorrupt as error:
                raise DeltaUnusable(str(error)) from None
        stats.bytes["delta"] += delta.bytes
        self._finish(rebuilt, manifest)

    def _base(self, delta: Delta, stats: CopyStats, allowance: int) -> DirectoryReader:
        """The delta's base: a copy that is here already, or one rebuilt now."""
        for made in (False, True):
            with suppress(WeightsMissing, WeightsCorrupt):
                here = DirectoryReader(self.path, delta.base_name)
                if here.manifest.identity == delta.identity:
                    return here
                here.close()
            if not made:
                with suppress(WeightsMissing, WeightsCorrupt), self._store.open(delta.base_name) as source:
                    self._rebuild(source, stats, allowance)
        raise DeltaUnusable(f"version {delta.base_name} is not in {self.path}", "base")

    def _finish(self, directory: Path, manifest: Manifest) -> None:
        """Make a finished copy visible."""
        (directory / MANIFEST).write_text(manifest.text(), encoding="utf-8")
        final = version_path(self.path, manifest.name)
        if final.exists():  # other weights of this number, or a copy without a readable manifest
            self._remove(final)
        os.rename(directory, final)

    # --- holding and removing copies

    def _hold(self, manifest: Manifest) -> DirectoryReader | None:
        """The copy of exactly these weights, protected from removal until it is closed; None if there is none."""
        try:
            here = DirectoryReader(self.path, manifest.name)
        except (WeightsMissing, WeightsCorrupt):
            return None
        with suppress(BlockingIOError, WeightsMissing):  # another process is removing it
            fcntl.flock(here.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            here.still_there()
            if here.manifest.identity == manifest.identity:
                return here
        here.close()
        return None

    def _keep(self, here: DirectoryReader) -> None:
        self.close()
        self._held = here

    def _evict(self, name: VersionName) -> None:
        """Remove all copies except `name`, the newest that is still published, and those that a process holds."""
        here = versions_in(self.path)
        newest = max(set(here) & set(self._store.versions()), default=name)
        for other in set(here) - {name, newest}:
            descriptor = os.open(version_path(self.path, other), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(version_path(self.path, other))
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)
        for entry in self.path.iterdir():
            if HIDDEN.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)

    def _discard(self, here: DirectoryReader) -> None:
        with suppress(WeightsMissing):
            here.still_there()
            self._remove(here.path)

    def _remove(self, final: Path) -> None:
        gone = final.with_name(f".{final.name}.gone.{secrets.token_hex(4)}")
        os.rename(final, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _hidden(self, manifest: Manifest, what: str) -> Path:
        return self.path / f".{manifest.name}.{what}.{manifest.identity[:8]}"

    @contextmanager
    def _locked(self, stats: CopyStats) -> Iterator[None]:
        """Hold the lock among all processes that use this cache. Raises WeightsError after `wait_seconds`."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        with open(path, "wb") as lock:
            stats.timed("fetch", lambda: self._wait(lock.fileno(), path))
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

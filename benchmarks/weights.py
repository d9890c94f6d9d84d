"""Cost of fetching and verifying a version, against plain tools on the same bytes.

    python -m benchmarks.weights [--megabytes 1024] [--rounds 5] [--directory /tmp] [--clock cpu]

    in place    DirectoryStore.fetch: every file read and hashed                  against `hashlib.file_digest` of each
    copy        WeightsCache.fetch into an empty cache: copied and hashed         against copyfile, then file_digest
    delta       WeightsCache.fetch with the base there, 1 % of 16-bit words new   against our own full copy

A version is four files in the layout of safetensors with 16-bit words. Our side also checks the manifest, the list of
files and that the version is still there, and makes the copy visible in one step; the plain side does not. The sides
take turns, and each ratio is the median of the rounds' ratios: of times, where lower is better, except for `delta`,
where it is how many times faster than a full copy. Both sides read from the page cache: a slow disk or network adds the
same to both, and for `delta` only for the bytes that are read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import alternate, row
from broker.queue.state import VersionName
from broker.weights.cache import WeightsCache
from broker.weights.directory import DirectoryStore
from broker.weights.store import Fetched

FILES = 4
CHANGED = 0.01
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = "wall"
"""`cpu` where other work shares the machine; it compares the work itself, not how files run side by side."""


def write(folder: Path, megabytes: int, changed: float, seed: int = 0) -> None:
    """Write four files of random 16-bit words in the layout of safetensors; a share `changed` of the words differs from
    those written with 0."""
    words = megabytes * (1 << 20) // FILES // 2
    header = json.dumps({"t": {"dtype": "BF16", "shape": [words], "data_offsets": [0, 2 * words]}}).encode()
    header = header.ljust((len(header) + 7) // 8 * 8)
    for number in range(FILES):
        data = np.random.default_rng((seed, number)).integers(0, 1 << 16, words, dtype=np.uint16)
        if changed:
            data[np.random.default_rng(number).integers(0, words, int(changed * words))] ^= 1
        with open(folder / f"model-{number + 1:05d}-of-{FILES:05d}.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(data.tobytes())


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call, by CLOCK."""
    begun = CLOCKS[CLOCK]()
    work()
    return CLOCKS[CLOCK]() - begun


def main() -> None:
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--clock", choices=CLOCKS, default=CLOCK)
    arguments = parser.parse_args()
    CLOCK = arguments.clock
    with tempfile.TemporaryDirectory(dir=arguments.directory) as made:
        root = Path(made)
        weights = DirectoryStore(root / "weights")
        for version, changed in ((1, 0.0), (2, CHANGED)):
            write(weights.begin(VersionName(version, 1)), arguments.megabytes, changed)
            weights.publish(VersionName(version, 1), base=VersionName(version - 1, 1))
        compare(weights, root, arguments.rounds)


def compare(weights: DirectoryStore, root: Path, rounds: int) -> None:
    """Print the three ratios for version 2 of `weights`, whose delta has version 1 as its base."""
    files = sorted((weights.path / str(VersionName(2, 1))).glob("*.safetensors"))
    cache, plain = root / "cache", root / "plain"
    parts: dict[str, Fetched] = {}

    def fetch(name: str, base: bool) -> float:
        shutil.rmtree(cache, ignore_errors=True)
        reader = WeightsCache(weights, cache)
        if base:
            reader.fetch(VersionName(1, 1))
        took = seconds(lambda: parts.update({name: reader.fetch(VersionName(2, 1))}))
        reader.close()
        return took

    def hash_all() -> None:
        for path in files:
            with open(path, "rb") as file:
                hashlib.file_digest(file, "sha256")

    def copy_and_hash() -> float:
        shutil.rmtree(plain, ignore_errors=True)
        plain.mkdir()

        def work() -> None:
            for path in files:
                shutil.copyfile(path, plain / path.name)
                with open(plain / path.name, "rb") as file:
                    hashlib.file_digest(file, "sha256")

        return seconds(work)

    seen = alternate(
        {
            "in place": lambda: seconds(lambda: parts.update({"in place": weights.fetch(VersionName(2, 1))})),
            "hash": lambda: seconds(hash_all),
            "copy": lambda: fetch("copy", base=False),
            "copy, hash": copy_and_hash,
            "delta": lambda: fetch("delta", base=True),
        },
        rounds,
    )
    whole = weights.manifest(VersionName(2, 1)).bytes
    print(
        f"{whole / 1e9:.2f} GB in {FILES} files, {rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for what, ours, other in (
        ("in place", "in place", "hash"),
        ("copy", "copy", "copy, hash"),
        ("delta", "copy", "delta"),
    ):
        line = row(what, seen[ours], seen[other], "s", "")
        spread = f"{min(line.rounds):.2f}…{max(line.rounds):.2f}"
        print(f"{what:<10} {line.ratio:5.2f}   ({line.ours:.2f} / {line.bare:.2f} s; rounds {spread})")
    for name, fetched in parts.items():
        moved = fetched.bytes["copied"] + fetched.bytes["delta"]
        shares = ", ".join(f"{part} {spent:.2f} s" for part, spent in fetched.seconds.items())
        print(f"{name:<10} {shares}; {moved / whole:.3f} of the bytes read into the cache")


if __name__ == "__main__":
    main()

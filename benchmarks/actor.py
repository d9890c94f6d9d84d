"""Benchmark of an actor on vLLM against bare `vllm.LLM.generate` on the same model and prompts, in tokens per second.

    python -m benchmarks.actor [--model DIR] [--rounds 5] [--seconds 15] [--publish 5] [--json FILE]

ours     `sieve actor` as a process with its Redis: tickets, sampling, log-probs and version spans recorded,
         every completion decoded and offered; in steady state, over a window of SECONDS
while…   the same, with a new version published every PUBLISH seconds, which is fetched, verified and loaded in
         flight: once with all keys and values recomputed, once without (actor.vllm.clear_cache: false)
bare     `LLM.generate` on as many prompts as take about SECONDS, with the sampled tokens' log-probs; nothing else

Both use the same arguments of vLLM and take turns; the side that is not measured is stopped (SIGSTOP). Also printed:
bare without log-probs, and the seconds of an update by part. Without --model: a random Llama of 5 million parameters.
Exit code 1 if a ratio misses its aim. Needs vLLM: `make test-vllm` creates the environment `.venv-vllm`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

# One thread for the model on either side, not bound to a core, since the sides take turns.
os.environ.update(OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")

import numpy as np
import psutil
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measure import Row, alternate, row
from broker.queue.learner_client import LearnerClient
from broker.queue.state import RunSpec, VersionName
from broker.queue.wire import Prompt, int32
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, RunSettings
from broker.weights.directory import DirectoryStore

ROOT = Path(__file__).resolve().parents[1]
GROUP, PROMPTS, PROMPT_TOKENS, NEW_TOKENS, BATCH, EOS = 8, 256, 48, 96, 64, 2
ARGUMENTS = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 512 << 20,
    "block_size": 32,
    "max_model_len": 256,
    "max_num_batched_tokens": 8192,
}
START_SECONDS, SETTLE_SECONDS = 300.0, 2.0


class ActorFailed(RuntimeError):
    """The actor ended or was too slow; the message ends with the last lines of its log."""


class Actor:
    """`sieve actor` with its own run; this process acts as a learner that publishes and never commits."""

    def __init__(self, directory: Path, model: Path, prompts: list[list[int]], *, clear_cache: bool = True) -> None:
        run = RunSettings(name="bench", directory=directory)
        # The actor is stopped for whole rounds and must not be taken for dead.
        broker = BrokerSettings(lease_seconds=3600, max_queued_bytes=8 << 30)
        self._server = Server.start(broker, run)
        self._port = _free_port()
        self._log = directory / "actor.log"
        settings = {
            "run": {"name": run.name, "directory": str(directory)},
            "broker": {"lease_seconds": 3600, "max_queued_bytes": 8 << 30, "url": self._server.url},
            "metrics": {"port": self._port},
            "model": {"path": str(model)},
            "data": {"train": str(ROOT / "examples/countdown/train.jsonl")},
            "verifier": {"serve": {"arithmetic": {}}},
            "actor": {
                "engine": "vllm",
                "max_batch": BATCH,
                "vllm": {"clear_cache": clear_cache, "arguments": ARGUMENTS},
            },
        }
        config = directory / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        self._model, self.version = model, 0
        self._weights = DirectoryStore(directory / "weights")
        self._learner = LearnerClient.connect(broker, run, url=self._server.url)
        spec = RunSpec(
            fingerprint="0" * 64,
            seed=0,
            steps=10_000,
            group_size=GROUP,
            groups_per_step=1000,
            publish_every=1,
            max_staleness=10_000,
            max_queued_bytes=8 << 30,
            max_new_tokens=NEW_TOKENS,
            train_prompts=len(prompts),
            eval_prompts=0,
            eos_token_ids=(EOS,),
            weights=str(self._weights.path),
        )
        self._epoch = self._learner.begin("learner-0")
        numbered = [_prompt(index, tokens) for index, tokens in enumerate(prompts)]
        self._learner.open_run(self._epoch, spec, numbered, [])
        self.publish()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sieve", "actor", str(config)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._sampled(missing=0.0):
            if time.monotonic() > deadline:
                raise ActorFailed(f"no token after {START_SECONDS:g} s: {self._last()}")
            time.sleep(0.5)
        self.stop()

    def publish(self) -> None:
        """Publish one more version: the same weights, written again."""
        name = VersionName(self.version, self._epoch.number)
        target = self._weights.begin(name)
        for file in self._model.iterdir():
            if file.suffix in (".json", ".safetensors"):
                shutil.copyfile(file, target / file.name)
        self._learner.publish(self._epoch, self.version, 0, self._weights.publish(name).identity)
        self._weights.keep(self._weights.versions()[-3:], name.epoch)
        self.version += 1

    def rate(self, seconds: float, publish: float | None = None) -> float:
        """Tokens per second over a window of `seconds`, with a version published every `publish` seconds."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        begin, before = time.perf_counter(), self._sampled()
        due = begin
        while (now := time.perf_counter()) < begin + seconds:
            if publish is not None and now >= due:
                self.publish()
                due += publish
            time.sleep(0.05)
        tokens, elapsed = self._sampled() - before, time.perf_counter() - begin
        self.stop()
        return tokens / elapsed

    def updates(self) -> dict[str, tuple[float, int]]:
        """Seconds of an update by part: mean and count. The actor must be running."""
        self._signal(signal.SIGCONT)
        sums: dict[str, dict[str, float]] = {}
        for name, labels, value in self._samples():
            if name.startswith("sieve_actor_update_seconds_") and "part" in labels:
                sums.setdefault(labels["part"], {})[name.rsplit("_", 1)[1]] = value
        self.stop()
        return {part: (one["sum"] / one["count"], int(one["count"])) for part, one in sums.items() if one.get("count")}

    def stop(self) -> None:
        """Stop all its processes with SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the actor and its Redis."""
        family = self._family()
        self._signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            for process in family:
                with _gone():
                    process.kill()
        self._learner.close()
        self._server.stop()

    def _sampled(self, missing: float | None = None) -> float:
        for name, _, value in self._samples():
            if name == "sieve_actor_tokens_total":
                return value
        if missing is None:
            raise ActorFailed(f"the actor does not answer: {self._last()}")
        return missing

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        if self._process.poll() is not None:
            raise ActorFailed(f"the actor ended with {self._process.returncode}: {self._last()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            return
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def _family(self) -> list[psutil.Process]:
        with _gone():
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def _signal(self, number: int) -> None:
        for process in self._family():
            with _gone():
                process.send_signal(number)

    def _last(self) -> str:
        return self._log.read_text(errors="replace")[-800:]


class Bare:
    """`vllm.LLM` with the same arguments, and as many prompts as take about `seconds`."""

    def __init__(self, model: Path, prompts: list[list[int]], seconds: float) -> None:
        from vllm import LLM

        self._llm = LLM(
            str(model),
            dtype="float32",
            max_num_seqs=BATCH,
            seed=0,
            generation_config="vllm",
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **ARGUMENTS,
        )
        self._prompts, self._next, self._groups = prompts, 0, BATCH // GROUP
        self._groups = max(self._groups * 4, round(self.rate() * seconds / (GROUP * NEW_TOKENS)))

    def rate(self, logprobs: int | None = 0) -> float:
        """Tokens per second of one `generate` over all its prompts."""
        from vllm import SamplingParams

        params = SamplingParams(
            n=GROUP,
            temperature=1.0,
            max_tokens=NEW_TOKENS,
            stop_token_ids=[EOS],
            ignore_eos=True,
            logprobs=logprobs,
            detokenize=False,
        )
        # Continue where the last round ended: an actor's prompts are new too, with no keys and values in the cache.
        order = range(self._next, self._next + self._groups)
        prompts: Any = [{"prompt_token_ids": self._prompts[index % PROMPTS]} for index in order]
        self._next = order.stop
        begin = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        elapsed = time.perf_counter() - begin
        return sum(len(one.token_ids) for output in outputs for one in output.outputs) / elapsed


def measure(model: Path, rounds: int, seconds: float, publish: float) -> tuple[list[Row], list[str]]:
    """The three ratios, and notes: bare without log-probs, an update by part."""
    prompts = _prompts(_vocabulary(model))
    bare = Bare(model, prompts, seconds)
    with ExitStack() as stack:

        def actor(clear_cache: bool) -> Actor:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            opened = Actor(Path(directory), model, prompts, clear_cache=clear_cache)
            stack.callback(opened.close)
            return opened

        exact, approximate = actor(True), actor(False)
        seen = alternate(
            {
                "bare": bare.rate,
                "ours": lambda: exact.rate(seconds),
                "changing": lambda: exact.rate(seconds, publish),
                "kept": lambda: approximate.rate(seconds, publish),
                "no log-probs": lambda: bare.rate(None),
            },
            rounds,
        )
        parts = exact.updates()
    changing = f"actor on vLLM, new weights every {publish:g} s"
    rows = [
        row("actor on vLLM", seen["ours"], seen["bare"], "tokens/s", "≥ 0.95"),
        row(changing, seen["changing"], seen["bare"], "tokens/s", "≥ 0.85"),
        row(f"{changing}, clear_cache: false", seen["kept"], seen["bare"], "tokens/s", "≥ 0.85"),
    ]
    bytes_ = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    found = ", ".join(f"{name} {mean * 1000:.0f} ms" for name, (mean, _) in sorted(parts.items()))
    count = max((many for _, many in parts.values()), default=0)
    return rows, [
        f"bare without log-probs: {np.median(seen['no log-probs']):.0f} tokens/s",
        f"an update of {bytes_ / 1e6:.0f} MB, mean of {count}: {found}",
    ]


def _random_llama(path: Path) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=704,
        vocab_size=512,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{token}": token for token in range(config.vocab_size)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2").save_pretrained(
        path
    )
    return path


def _vocabulary(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def _prompts(vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(3, vocabulary, rng.integers(PROMPT_TOKENS // 2, PROMPT_TOKENS)).tolist() for _ in range(PROMPTS)
    ]


def _prompt(index: int, tokens: list[int]) -> Prompt:
    return Prompt(index=index, text="w", tokens=int32(tokens), verifier="arithmetic", record={})


@contextmanager
def _gone() -> Iterator[None]:
    """Ignore that a process has ended."""
    try:
        yield
    except psutil.NoSuchProcess:
        return


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one measurement")
    parser.add_argument("--publish", type=float, default=5.0, help="seconds between versions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        model = options.model or _random_llama(Path(directory) / "model")
        rows, notes = measure(model, options.rounds, options.seconds, options.publish)
    for line in rows:
        spread = f"{min(line.rounds):.2f}…{max(line.rounds):.2f}"
        print(
            f"{line.what}: {line.ratio:.2f} ({line.ours:.0f} / {line.bare:.0f} {line.unit}; {spread}), aim {line.aim}"
        )
    print(*notes, sep="\n")
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores {platform.machine()}"
    )
    print(f"{device}, load {load:.1f} → {os.getloadavg()[0]:.1f}; ratio: median of rounds")
    if options.json is not None:
        body = {"rows": [asdict(line) | {"met": line.met} for line in rows], "notes": notes, "device": device}
        options.json.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    sys.exit(1 if any(line.met is False for line in rows) else 0)


if __name__ == "__main__":
    main()

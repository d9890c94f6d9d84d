"""The transformers model of the torch engine: opening it, forward passes that fill cache slots, prefill and scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actor.engine import Ids, ModelUnusable
from actor.engines.tokenizer import Decode, open_tokenizer
from actor.engines.torch.kv_slots import Slots
from actor.engines.torch.weights import Weights
from broker.model_files import problem_of
from broker.settings import ModelSettings


@dataclass(eq=False)
class Prefill:
    """Keys, values and next-token logits (prompts, vocabulary) of prompts prefilled in one pass."""

    slots: Slots
    logits: torch.Tensor


class Policy:
    """A causal language model with full attention, in eval mode. Call its methods in torch.inference_mode.

    `pass_tokens` bounds the tokens (padding included) of one pass, and with them its activation memory.
    Raises ModelUnusable for models whose cache is not one key and value per position and layer.
    """

    def __init__(self, model: Any, *, pass_tokens: int = 8192) -> None:
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if kinds != {"full_attention"} or window:
            raise ModelUnusable(
                f"actor.engine torch caches full attention only, but the model at model.path has {sorted(kinds)} with "
                f"sliding_window {window}: use another model or engine"
            )
        self._model = model.eval().requires_grad_(False)
        self._weights = Weights(self._model)
        self.pass_tokens = pass_tokens
        self.device: torch.device = next(model.parameters()).device
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self._layers = int(config.num_hidden_layers)

    def load(self, directory: Path) -> None:
        """Load a version's weights, all or nothing. Raises WeightsUnusable."""
        self._weights.load(directory)

    def take(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        """Load whole weights by name; `source` names their origin in errors. Raises WeightsUnusable."""
        self._weights.take(tensors, source)

    def slots(self, count: int) -> Slots:
        """An empty cache for `count` sequences."""
        return Slots(self._layers, count, self.device)

    def forward(
        self, slots: Slots, tokens: torch.Tensor, positions: torch.Tensor, width: int, keep: Any = 1, first: int = 0
    ) -> torch.Tensor:
        """One pass of `tokens` (n, q), the first of each row at `positions` (n,), through slots `first` … .

        `width`: largest position + 1. Fills the slots' columns and returns logits (n, kept, vocabulary): of the last
        `keep` tokens, or of the columns listed in a tensor `keep`."""
        ids, mask = slots.aim(positions, tokens.shape[1], width, first)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=ids,
            past_key_values=slots.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Prefill, int]]:
        """Run each prompt once through the model; returns, per prompt, the pass that it was in and its slot there."""
        places: dict[int, tuple[Prefill, int]] = {}
        for together in self._passes([len(prompt) for prompt in prompts]):
            prefill = self._pass([prompts[at] for at in together])
            places |= {at: (prefill, slot) for slot, at in enumerate(together)}
        return [places[at] for at in range(len(prompts))]

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        """log π of each answer token after its prompt, (T,) float32 each; (prompt, answer), both non-empty."""
        scores: dict[int, NDArray[np.float32]] = {}
        for together in self._passes([len(prompt) + len(answer) for prompt, answer in sequences]):
            rows = [np.concatenate(sequences[at]) for at in together]
            first = min(len(sequences[at][0]) for at in together) - 1
            tokens = self.tensor(_padded(rows))
            start = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
            width = tokens.shape[1]
            columns = torch.arange(first, width - 1, device=self.device)
            logits = self.forward(self.slots(len(rows)), tokens, start, width, columns)
            logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            found = logprobs.gather(2, tokens[:, first + 1 :].unsqueeze(2)).squeeze(2).cpu().numpy()
            for row, at in enumerate(together):
                before, after = (len(part) for part in sequences[at])
                scores[at] = found[row, before - 1 - first : before - 1 - first + after].copy()
        return [scores[at] for at in range(len(sequences))]

    def _passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices into `lengths` of the sequences in each pass, by rising length: similar lengths need less padding."""
        order = sorted(range(len(lengths)), key=lambda at: lengths[at])
        while order:
            count = 1
            while count < len(order) and (count + 1) * lengths[order[count]] <= self.pass_tokens:
                count += 1
            together, order = order[:count], order[count:]
            yield together

    def _pass(self, prompts: list[Sequence[int]]) -> Prefill:
        """Prefill `prompts`, which are sorted by length, in one pass."""
        count, width = len(prompts), len(prompts[-1])
        # Logits are computed only for the columns in which some prompt ends.
        columns, which = np.unique([len(prompt) - 1 for prompt in prompts], return_inverse=True)
        slots = self.slots(count)
        start = torch.zeros(count, dtype=torch.int64, device=self.device)
        logits = self.forward(slots, self.tensor(_padded(prompts)), start, width, self.tensor(columns))
        return Prefill(slots, logits[torch.arange(count, device=self.device), self.tensor(which)])

    def tensor(self, values: Any) -> torch.Tensor:
        """An array (or list) of numbers as a tensor on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _padded(rows: Sequence[Any]) -> NDArray[np.int64]:
    """Token ids of rows of different lengths as one array, padded with zeros on the right."""
    tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return tokens


def device_of(name: str) -> torch.device:
    """The device named by actor.device. Raises ModelUnusable for a CUDA device that does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelUnusable(
            f"actor.device = {name}, but torch sees {torch.cuda.device_count()} CUDA devices: use auto or cpu"
        )
    return device


def open_model(settings: ModelSettings, device: torch.device, pass_tokens: int) -> tuple[Policy, Decode]:
    """The model and tokenizer in the directory model.path; nothing is fetched from a network.

    Raises ModelUnusable if they cannot be read or do not fit each other."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a service's stderr is its log
    if problem := problem_of(settings.path):
        raise ModelUnusable(problem)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            settings.path,
            dtype=getattr(torch, settings.dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:  # of a foreign library about foreign files
        raise ModelUnusable(f"model.path = {settings.path}: not a Hugging Face model directory ({error})") from error
    policy = Policy(model.to(device), pass_tokens=pass_tokens)
    return policy, open_tokenizer(settings.path, policy.vocabulary)

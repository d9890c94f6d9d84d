"""What the learner's tests are made of: tiny Llama models, prompt files, verified completions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from broker.queue.state import Group, Member
from broker.queue.wire import Completion, Verdict, float32, int32

VOCABULARY = 24
EOS = 1
ROOT = Path(__file__).resolve().parents[2]


def save_model(path: Path, *, seed: int = 0, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A two-layer Llama of 8 thousand parameters with a word-level tokenizer of VOCABULARY words."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(path)
    words = {"<pad>": 0, "<end>": EOS, "<unk>": 2} | {f"w{index}": index for index in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


def save_prompts(path: Path, count: int) -> Path:
    """`count` different prompts of two to four words."""
    lines = []
    for index in range(count):
        words = [f"w{3 + (index * 7 + place * 5) % (VOCABULARY - 3)}" for place in range(2 + index % 3)]
        lines.append(json.dumps({"prompt": " ".join(words), "verifier": "even", "record": {"index": index}}))
    path.write_text("\n".join(lines) + "\n")
    return path


def uniform_completion(
    draw: np.random.Generator, group_id: str, prompt: int, idx: int, n: int, version: int, longest: int
) -> tuple[Completion, Verdict]:
    """A draw from the uniform policy: its μ is exact whatever version it claims. An even first token passes."""
    ids: list[int] = []
    while len(ids) < longest and (not ids or ids[-1] != EOS):
        ids.append(int(draw.integers(0, VOCABULARY)))
    passed = ids[0] % 2 == 0
    completion = Completion(
        group_id=group_id,
        lane="eval" if group_id.startswith("e") else "train",
        prompt=prompt,
        idx=idx,
        n=n,
        tokens=int32(ids),
        logprobs=float32(np.full(len(ids), -np.log(VOCABULARY))),
        spans=((version, 0, len(ids)),),
        finish="stop" if ids[-1] == EOS else "length",
        text=" ".join(map(str, ids)),
        actor="hand",
    )
    verdict = Verdict(
        outcome="pass" if passed else "fail", reason="even" if passed else "odd", seconds=0.0, verifier="even/1",
        answer=str(ids[0]) if passed else "",
    )  # fmt: skip
    return completion, verdict


def make_groups(
    count: int, n: int, *, seed: int = 0, longest: int = 6, version: int = 0, start: int = 0
) -> list[Group]:
    """Finished groups of uniform completions, prompt index = group number."""
    draw = np.random.default_rng(seed)
    groups = []
    for number in range(start, start + count):
        group_id = f"0:{number}"
        pairs = [uniform_completion(draw, group_id, number, idx, n, version, longest) for idx in range(n)]
        groups.append(Group(group_id, number, n, version, version, 0, 0.0, [Member(*pair, None) for pair in pairs]))
    return groups

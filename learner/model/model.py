"""The policy π_θ and the frozen base π_b: loaded from Hugging Face files, sharded with FSDP2, scored by one function.

Both models are scored by the same class, in the same precision, on the same code path, so that a ratio π_θ/π_b never
measures a difference between kernels. Nothing here depends on groups, coefficients or the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from broker.errors import EX_DATA, SieveError
from broker.model_files import problem_of
from learner.batch.packing import Layout, Row, lay_out

LOGIT_ELEMENTS = 1 << 27
"""Float32 logits held at once (512 MiB); beyond it the head is computed in pieces, and again in the backward pass."""

_log = logging.getLogger("sieve.learner")


class ModelUnusable(SieveError):
    """The model directory cannot be trained: missing, damaged, or of an architecture that would be scored wrongly."""

    exit_code = EX_DATA


class Scorer(nn.Module):
    """A causal language model whose forward gives log-probabilities of given tokens instead of logits.

    The output head runs on completion positions only, and its log-softmax in float32, whatever the model's precision.
    """

    def __init__(self, causal_lm: nn.Module, *, recompute: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.backbone_name = str(causal_lm.base_model_prefix)
        self.recompute = recompute

    @property
    def backbone(self) -> nn.Module:
        return getattr(self.causal_lm, self.backbone_name)  # type: ignore[no-any-return]

    @property
    def head(self) -> nn.Module:
        return self.causal_lm.get_output_embeddings()  # type: ignore[no-any-return, operator]

    def forward(
        self, tokens: Tensor, positions: Tensor | None, attend: Tensor | None, at: Tensor, targets: Tensor
    ) -> Tensor:
        """log π(targets | what precedes them), (M,) float32; the arguments are those of `packing.Layout`."""
        hidden = self.backbone(
            input_ids=tokens, position_ids=positions, attention_mask=attend, use_cache=False
        ).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, at)
        if at.numel() == 0:
            # Nothing to score: still touch every parameter, so that this rank's collectives match the others'.
            return self.head(hidden).float().sum(-1)  # type: ignore[no-any-return]
        piece = max(1, LOGIT_ELEMENTS // int(self.head.out_features))  # type: ignore[arg-type]
        if at.numel() <= piece:
            return self._log_probs(hidden, targets)
        parts = zip(torch.split(hidden, piece), torch.split(targets, piece), strict=True)
        return torch.cat([checkpoint(self._log_probs, part, aim, use_reentrant=False) for part, aim in parts])

    def _log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(hidden).float()
        return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)  # type: ignore[no-any-return]


def score(model: Callable[..., Tensor], layout: Layout) -> Tensor:
    """log π per completion token, (N, T) float32, zero where `layout.mask` is False. The one scoring function."""
    return layout.table(model(layout.tokens, layout.positions, layout.attend, layout.at, layout.targets))


def load(path: Path, dtype: torch.dtype) -> nn.Module:
    """The causal language model in `path`, on the CPU in `dtype`, without dropout. Raises ModelUnusable."""
    if not (path / "config.json").is_file():
        raise ModelUnusable(f"model.path = {path} holds no config.json: give the directory of a Hugging Face model")
    if problem := problem_of(path):
        raise ModelUnusable(problem)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except Exception as error:  # of a foreign library about foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelUnusable(f"model.path = {path} cannot be loaded ({reason}): copy the model there again") from error
    # A policy is what the sampler runs, and a sampler has no dropout: with it, π_θ would not be the sampled policy.
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and name.endswith(("dropout", "dropout_prob", "pdrop")):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    _same_names_as_files(model, path)
    return model.eval()


def _same_names_as_files(model: nn.Module, path: Path) -> None:
    """Refuse an architecture that transformers renames while loading: its published weights would load nowhere."""
    files = sorted(path.glob("*.safetensors"))
    stored: set[str] = set()
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            stored.update(tensors.keys())
    unknown = sorted(stored - set(model.state_dict()))
    if unknown:
        raise ModelUnusable(
            f"{path} stores {unknown[0]!r} (and {len(unknown) - 1} more) under a name the loaded model does not have, "
            "so what this learner publishes would not load in an actor; use an architecture whose tensors keep their "
            "names (Llama, Qwen)"
        )


def verify_scoring(model: Scorer, path: Path, *, shared_rows: bool) -> None:
    """Compare `score` with the architecture's own logits before training starts. Raises ModelUnusable.

    It catches what a head applied to the backbone's output would miss (soft-capped or scaled logits) and attention that
    does not honour the mask of rows with several completions (recurrent layers, for one).
    """
    vocabulary = int(model.causal_lm.config.vocab_size)  # type: ignore[union-attr, arg-type]
    draw = np.random.default_rng(0)
    prompt = draw.integers(0, vocabulary, 5).astype(np.int32)
    completions = [draw.integers(0, vocabulary, length).astype(np.int32) for length in (4, 3)]
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.25
    alone = [Row(0, (0,), 9), Row(0, (1,), 8)]
    with torch.no_grad():
        expected = []
        for completion in completions:
            ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
            logits = model.causal_lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            expected.append(logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
        wanted = torch.cat(expected)
        for rows, remedy in (
            (alone, "this architecture changes its logits after the output head and is not supported"),
            ([Row(0, (0, 1), 12)], "set learner.row_tokens = 0 to give every completion a row of its own"),
        ):
            if len(rows) == 1 and not shared_rows:
                continue
            layout = lay_out(rows, [prompt], [completions], [0])
            found = score(model, layout)[layout.mask]
            if not torch.allclose(found, wanted, atol=tolerance, rtol=tolerance):
                worst = float((found - wanted).abs().max())
                raise ModelUnusable(
                    f"{path}: log-probs of {len(rows)} row(s) differ from the model's own by {worst:.3g} > "
                    f"{tolerance}: {remedy}"
                )


def shard(
    causal_lm: nn.Module,
    mesh: DeviceMesh,
    *,
    compute: torch.dtype,
    trainable: bool,
    recompute: bool = False,
    reshard_after_forward: bool = True,
) -> Scorer:
    """The model as a Scorer sharded over `mesh`: each decoder layer one unit, the rest the root's.

    Parameters keep their dtype (the optimiser's precision); they are gathered and used as `compute`; gradients are
    reduced in float32. `recompute` trades the activations of each layer for a second forward. A model that is not
    `trainable` is frozen before it is sharded, so that it holds no gradients; of one that is, parameters which are
    frozen already (the base under adapters) stay so.
    """
    scorer = Scorer(causal_lm, recompute=recompute)
    if not trainable:
        scorer.requires_grad_(False)
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "reshard_after_forward": reshard_after_forward}
    layers = scorer.backbone.layers
    if recompute:
        for layer in layers:  # type: ignore[union-attr]
            _recomputed(layer)
    for layer in layers:  # type: ignore[union-attr]
        fully_shard(layer, **options)
    fully_shard(scorer, **options)
    if mesh.device_type != "cpu":
        scorer.to(mesh.device_type)  # buffers; parameters have been moved by sharding
    return scorer


def _recomputed(layer: nn.Module) -> None:
    """Make the layer drop its activations after forward and compute them again in backward. Parameter names stay."""
    plain = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, **kwargs)

    layer.forward = forward


def full_state(
    scorer: Scorer, dtype: torch.dtype, *, keep: bool, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Whole tensors under their Hugging Face names, on the CPU in `dtype`; collective: every rank must call it.

    Those whose name is `wanted`: all, unless said otherwise. One tensor is gathered at a time, so that the peak on a
    device is one tensor above its shards. Ranks that do not `keep` take part and return {}. Tied tensors appear once,
    as transformers stores them.
    """
    state: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = dict(scorer.causal_lm.named_parameters())
    persistent = scorer.causal_lm.state_dict(keep_vars=True)
    tensors.update({name: value for name, value in scorer.causal_lm.named_buffers() if name in persistent})
    for name, tensor in tensors.items():
        if not wanted(name):
            continue
        value = tensor.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            target = dtype if whole.is_floating_point() else whole.dtype
            state[name] = whole.to("cpu", target, copy=True).contiguous()
    return state

"""Settings that more than one package reads: the run, the broker, the prompts, sampling and the schedule.

Each is one section of the configuration tree (deploy/config/tree.py). A setting that would break the method's validity
rules or deadlock the pipeline is refused here, with the value, the limit and the remedy.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    field_validator,
    model_validator,
)

Lane = Literal["train", "eval"]
VERIFIER_NAME = r"^[a-z][a-z0-9_-]{0,31}$"
"""Pattern of the names by which prompts and queues refer to verifiers."""
VerifierName = Annotated[str, Field(pattern=VERIFIER_NAME)]


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class RunSettings(Section):
    """What this run is called and where it keeps its files."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    directory: Path = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def path(self) -> Path:
        """The run directory: config.yaml, metrics.jsonl, eval.jsonl, checkpoints/, weights/, logs/, report/."""
        return self.directory / self.name


class BrokerSettings(Section):
    """Where Redis is, and how much it may hold."""

    url: SecretStr | None = None
    """`redis://`, `rediss://` or `unix://`; None starts a private server in the run directory."""
    max_queued_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Payload bytes that may wait in Redis before no more tickets are granted."""
    max_item_bytes: Annotated[int, Field(ge=1 << 12, le=64 << 20)] = 4 << 20
    """Largest single wire message, checked before it is unpacked."""
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 10.0
    """A service whose heartbeat is older than this is dead: what it held is given to others."""
    verify_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Attempts at one completion before it is dead-lettered and its group closes one short: verdicts of `error`, and
    deliveries to a verifier that gave none. With 1, whatever a killed verifier held is dead-lettered."""
    connect_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """How long a service waits for Redis at start and during an outage before it gives up with exit code 69."""


_DATASET = re.compile(r"datasets:\w[\w.-]*(/\w[\w.-]*){0,2}(@\w[\w.-]*)?:\w+(\[[\w%:.-]*\])?")


def _source(value: Any) -> Path | str:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"{value!r} is no source of prompts: give a *.jsonl or *.parquet file, or datasets:owner/name:split"
        )
    if value.startswith("datasets:"):
        if not _DATASET.fullmatch(value):
            raise ValueError(
                f"{value[:200]!r} cannot be read: write datasets:owner/name:split, with a configuration "
                "datasets:owner/name/main:train, a revision …@v1:train or a slice …:train[:500]"
            )
        return value
    return Path(value)


PromptSource = Annotated[Path | str, PlainValidator(_source), PlainSerializer(str)]
"""A file's path; or a name that Hugging Face `datasets` loads, as text (it stays text: it is no path)."""


def _record(value: Any) -> Any:
    def check(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                check(below, f"{where}.{name}")
        elif not isinstance(value, str) or not value.removeprefix("json:"):
            raise ValueError(
                f"{where} = {value!r}: name a column; what is the same in every row belongs in data.record_constants"
            )

    check(value, "data.columns.record")
    return value


class ColumnSettings(Section):
    """Where prompts find their parts in a row. Dots reach into nested objects (`extra_info.index`)."""

    prompt: Annotated[str, Field(min_length=1)] = "prompt"
    """A column; or text with columns in braces, `Prove {statement}` (a brace itself is doubled: `\\boxed{{}}`)."""
    verifier: Annotated[str, Field(min_length=1)] = "verifier"
    """A column; not looked at where `data.verifier` is set."""
    record: Annotated[str | dict[str, Any], PlainValidator(_record)] = "record"
    """A column that holds the object for the verifier; or the object itself with columns as its values, nested as
    needed: `{answer: solution.final, tests: "json:tests"}`. `json:` reads a column's text as JSON."""
    pass_rate: Annotated[str, Field(min_length=1)] = "pass_rate"
    """A column with the base model's pass rate, 0–1; looked at with `learner.partition.mode: fixed` only."""

    @model_validator(mode="after")
    def _readable(self) -> ColumnSettings:
        try:
            fields = list(Formatter().parse(self.prompt))
        except ValueError as error:
            raise ValueError(
                f"data.columns.prompt = {self.prompt[:60]!r}: {error}; write a brace that is no column as {{{{ or }}}}"
            ) from None
        for _, name, spec, conversion in fields:
            if name is not None and (not name or spec or conversion):
                raise ValueError(
                    f"data.columns.prompt = {self.prompt[:60]!r}: braces hold a column's name and nothing else; write "
                    f"a brace that is no column as {{{{ or }}}}"
                )
        return self


class ChatSettings(Section):
    """Whether prompts are wrapped in the tokenizer's chat template."""

    enabled: bool = False
    """Apply `tokenizer.chat_template`, with the generation prompt. A prompt is then one user message, or a list of
    messages `{role, content}` as it stands in the row."""
    system: str | None = None
    """A system message before every prompt."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the template, such as `enable_thinking: false`."""

    @model_validator(mode="after")
    def _used(self) -> ChatSettings:
        if not self.enabled and (self.system is not None or self.options):
            raise ValueError(
                "data.chat.system and data.chat.options need data.chat.enabled = true; set it or remove them"
            )
        return self


class DataSettings(Section):
    """Prompts: a JSONL file (one object a line), a Parquet file (`*.parquet`), or a name that `datasets` loads.

    Without `columns` a row has `prompt` (text), `verifier` (name) and `record` (an object for the verifier).
    """

    train: PromptSource
    eval: PromptSource | None = None
    format: Literal["apps", "humaneval", "kodcode", "livecodebench", "mbpp", "primeintellect", "taco"] | None = None
    """The public data set whose columns the rows have, in place of `data.columns`: prompts and records for the verifier
    `python` are made from them."""
    columns: ColumnSettings = ColumnSettings()
    verifier: VerifierName | None = None
    """The verifier of every row, in place of a column."""
    record_constants: dict[str, Any] = Field(default_factory=dict)
    """Fields that every record gets besides those of its row, which may not have them."""
    chat: ChatSettings = ChatSettings()

    @model_validator(mode="after")
    def _one_mapping(self) -> Self:
        for name in ("prompt", "verifier", "record") if self.format is not None else ():
            value = getattr(self.columns, name)
            if value != ColumnSettings.model_fields[name].default:
                raise ValueError(
                    f"data.columns.{name} = {str(value)[:60]!r} with data.format = {self.format}: the format says "
                    f"where the parts of a row are; remove one of the two"
                )
        return self


class LoraSettings(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685): W + (alpha / rank) · B · A with W frozen, in chosen matrices.

    The policy is the base with its adapters, the base is the same model without them: one copy of the weights serves
    both. A version is the adapters alone, in PEFT's format.
    """

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rows of A and columns of B; 512 is vLLM's largest. The update is divided by it, so that a learning rate which
    suits one rank suits another."""
    alpha: Annotated[float, Field(gt=0, le=65536)] = 32.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """The matrices that get an adapter: last parts of module names inside the decoder layers, `q_proj` or
    `mlp.up_proj`. The default is all of them in models of Llama's and Qwen's kind."""

    @field_validator("targets")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"\w+(\.\w+)*", name):
                raise ValueError(
                    f"model.lora.targets: {name[:80]!r} is no module name: give its last part, such as q_proj, or "
                    "several joined by dots, such as self_attn.q_proj; patterns are not understood"
                )
            if value.count(name) > 1:
                raise ValueError(f"model.lora.targets names {name!r} {value.count(name)} times: keep one")
        return value

    @property
    def scale(self) -> float:
        """The factor of B · A."""
        return self.alpha / self.rank


class ModelSettings(Section):
    """The base model π_b: a Hugging Face model directory with its tokenizer."""

    path: Path
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraSettings | None = None
    """Train adapters instead of all weights; None trains all."""


class SamplingSettings(Section):
    """How completions are drawn. Training samples must come from the policy itself (method: rules of validity)."""

    group_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """n: completions of one prompt sampled together."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @model_validator(mode="after")
    def _policy_itself(self) -> SamplingSettings:
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        for name, value in neutral.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"sampling.{name} = {getattr(self, name)} would sample from something other than the policy: the "
                    f"sampler would give probability 0 (or a wrong one) to answers the target keeps, so Z is "
                    f"under-estimated and every ratio is wrong; the only valid value is {value}: remove the key"
                )
        return self


class ScheduleSettings(Section):
    """How much is trained on what, and how old it may be."""

    steps: Annotated[int, Field(ge=0)] = 100
    """Optimiser steps of the whole run."""
    groups_per_step: Annotated[int, Field(ge=1)] = 64
    publish_every: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps between two published versions."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Optimiser steps between two durable checkpoints; groups are committed with a checkpoint."""
    max_staleness: Annotated[int, Field(ge=0, le=100_000)] = 4
    """Versions that may be published between the issue of a ticket and the step that trains on its group; 0 is
    lock-step.
    """
    ess_target: Annotated[float, Field(gt=0, le=1)] | None = None
    """Closed loop: after each version, admission tightens when the step's effective sample size of ρ^α (a share; of
    ρ for objectives other than α-DPG) is below this, and loosens again, never beyond `max_staleness`, when it is not.
    None: always `max_staleness`.
    """
    forced_staleness: Annotated[int, Field(ge=0, le=1000)] = 0
    """For studies only. Actors sample train groups with the version this much older than the newest (version 0 until
    there is one): what they would have in a pipeline of that delay. Groups are then between this and this plus
    `max_staleness` versions old when trained on; with max_staleness = 0 exactly this, once as many versions are out.
    """

    @property
    def groups_per_version(self) -> int:
        """Groups absorbed by one published version."""
        return self.groups_per_step * self.publish_every


class EvaluationSettings(Section):
    """Held-out evaluation through the eval lane; the last version is always evaluated."""

    base: bool = True
    """Evaluate version 0, the base model, too. A sweep evaluates it once for all its runs of a seed."""
    every: Annotated[int, Field(ge=0)] = 0
    """Versions between two evaluations while training; 0: only the base and the last version."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 128
    """Completions per held-out prompt."""
    prompts: Annotated[int, Field(ge=1)] = 100
    """Held-out prompts used: the first this many of `data.eval`."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How long the learner waits for the last evaluation before it ends without it, saying so."""


class WeightsSettings(Section):
    """Where published versions are stored, and whether they are also broadcast. Every version is stored, also with a
    broadcast: late joiners, evaluations and resumed runs read it from the store."""

    store: Literal["directory"] = "directory"
    """`directory`: safetensors files in `<run>/weights`, which the learner and all actors must see."""
    cache: Path | None = None
    """Directory of the actor's own machine for verified copies of stored versions, shared by the actors there. None:
    versions are read in place."""
    delta: bool = False
    """Store also what changed since the version before, where that is less than half of a version. Actors that have the
    earlier version in their `cache` read only this."""
    broadcast: Literal["none", "gloo", "nccl"] = "none"
    """`gloo` (CPUs) and `nccl` (GPUs, vLLM only) send each new version from the learner's rank 0 straight into the
    engines, beside storing it. `none`: actors read it from the store."""
    broadcast_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    """`gloo`: address of this machine on which the learner's rank 0 listens for the engines."""
    broadcast_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Limit for connecting all engines, and again for sending a version. Actors that have not received it by then read
    it from the store."""


class MetricsSettings(Section):
    """Where each service answers /metrics, /healthz and /readyz."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0 takes a free port, which `sieve status` and the Prometheus target file name."""

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not value:
            raise ValueError("metrics.host is empty; use 127.0.0.1, or 0.0.0.0 inside a pod with a network policy")
        return value


class Shared(Section):
    """The sections that every package reads; deploy/config/tree.py adds those of each package."""

    run: RunSettings = RunSettings()
    broker: BrokerSettings = BrokerSettings()
    model: ModelSettings
    data: DataSettings
    sampling: SamplingSettings = SamplingSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    weights: WeightsSettings = WeightsSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def unsafe(self) -> tuple[str, ...]:
        """Settings of any package with which actors may sample something other than the policy, `<key>=<JSON>` each,
        sorted: part of the run's identity."""
        return ()

    @model_validator(mode="after")
    def _can_broadcast(self) -> Self:
        broadcast = self.weights.broadcast
        if broadcast == "none":
            return self
        if self.schedule.forced_staleness:
            raise ValueError(
                f"weights.broadcast = {broadcast} loads the newest version at once, but schedule.forced_staleness = "
                f"{self.schedule.forced_staleness} needs older ones: set weights.broadcast to none"
            )
        if self.model.lora is not None:
            raise ValueError(
                f"weights.broadcast = {broadcast} sends whole models, but with model.lora only the adapters change, a "
                f"few megabytes: set weights.broadcast to none"
            )
        return self

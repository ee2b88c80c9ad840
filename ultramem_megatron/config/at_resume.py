"""What a run does with a setting that is another one than when its checkpoint was written, field by field.

The config is the truth: what it says takes effect from the next step on, or is refused, or is said to have no effect.
It is the same for a run that goes on (``--run-dir``) and for one that begins with another's checkpoint
(``checkpoint.load``). ``tests/checkpoint/test_at_resume.py`` walks all fields: add a row for a new one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Settings = Mapping[str, Mapping[str, Any]]
"""A config as plain values, by section and field."""


class AtResume(StrEnum):
    """What becomes of another value."""

    TAKES_EFFECT = "takes effect"
    REFUSED = "refused"
    """The weights would mean something else, or not fit."""
    WITHOUT_EFFECT = "without effect"


@dataclass(frozen=True, slots=True)
class Part:
    """What a setting belongs to, which a run may be without; then the setting has no effect, whatever its rule."""

    is_there: Callable[[Settings], bool]
    without: str
    """Why it is not there."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row."""

    what: AtResume
    part: Part | None = None
    why: str = ""
    """Of what has no effect, or takes it in a part of what it says."""


EFFECT, REFUSED = Rule(AtResume.TAKES_EFFECT), Rule(AtResume.REFUSED)

MEMORY = Part(lambda c: c["memory"]["variant"] != "none", "memory.variant = none")
CORE = Part(
    lambda c: c["memory"]["variant"] not in ("none", "pkm"), "this memory.variant has no Tucker core of several scores"
)
PENALTY = Part(lambda c: CORE.is_there(c) and c["memory"]["auxiliary_weight"] > 0, "there is no loss on a core")
SHUFFLED = Part(
    lambda c: MEMORY.is_there(c) and c["memory"]["expansion"] > 1, "there are no virtual slots to be shuffled"
)
EXPERTS = Part(lambda c: c["model"]["experts"] > 0, "model.experts = 0")
FILES = Part(lambda c: not c["data"]["synthetic"], "data.synthetic = true")
VALIDATION = Part(lambda c: c["training"]["eval_interval"] > 0, "training.eval_interval = 0")
WATCH = Part(lambda c: c["resilience"]["hang_seconds"] > 0, "resilience.hang_seconds = 0")
MEDIAN = Part(lambda c: c["resilience"]["loss_spike_factor"] > 0, "resilience.loss_spike_factor = 0")
WAY_BACK = Part(lambda c: c["resilience"]["bad_step"] == "roll_back", "resilience.bad_step = skip")

MEMORY_EFFECT, MEMORY_REFUSED = Rule(AtResume.TAKES_EFFECT, MEMORY), Rule(AtResume.REFUSED, MEMORY)
CORE_REFUSED, EXPERTS_REFUSED = Rule(AtResume.REFUSED, CORE), Rule(AtResume.REFUSED, EXPERTS)
INITIAL = Rule(AtResume.WITHOUT_EFFECT, why="weights come from the checkpoint")

AT_RESUME: dict[str, Rule] = {
    "model.layers": REFUSED,
    "model.hidden": REFUSED,
    "model.ffn_hidden": REFUSED,
    "model.heads": REFUSED,
    "model.seq_length": EFFECT,
    "model.vocab_size": REFUSED,
    "model.gated_mlp": REFUSED,
    "model.experts": REFUSED,
    "model.experts_per_token": EXPERTS_REFUSED,
    "model.expert_ffn_hidden": EXPERTS_REFUSED,
    "model.expert_balance_weight": Rule(AtResume.TAKES_EFFECT, EXPERTS),
    "model.dropout": EFFECT,
    "model.tie_embeddings": REFUSED,
    "model.norm_epsilon": REFUSED,
    "model.rope_base": REFUSED,
    "model.init_std": INITIAL,
    "model.embedding_init_std": INITIAL,
    "memory.variant": REFUSED,
    "memory.spans": MEMORY_REFUSED,
    "memory.keys_per_side": MEMORY_REFUSED,
    "memory.top_m": MEMORY_EFFECT,
    "memory.side_top_m": MEMORY_EFFECT,
    "memory.heads": MEMORY_REFUSED,
    "memory.heads_per_query": MEMORY_REFUSED,
    "memory.key_dim": MEMORY_REFUSED,
    "memory.key_layout": CORE_REFUSED,
    "memory.value_dim": MEMORY_REFUSED,
    "memory.pre_value_dim": MEMORY_REFUSED,
    "memory.softmax": MEMORY_REFUSED,
    "memory.tucker_rank": CORE_REFUSED,
    "memory.cores": CORE_REFUSED,
    "memory.expansion": MEMORY_REFUSED,
    "memory.query_conv_kernel": MEMORY_REFUSED,
    "memory.normalize_keys": MEMORY_REFUSED,
    "memory.initialization": INITIAL,
    "memory.score_gain": INITIAL,
    "memory.dropout": MEMORY_EFFECT,
    "memory.auxiliary_weight": Rule(AtResume.TAKES_EFFECT, CORE),
    "memory.auxiliary_margin": Rule(AtResume.TAKES_EFFECT, PENALTY),
    "memory.shuffle_seed": Rule(AtResume.REFUSED, SHUFFLED),
    "memory.partition": MEMORY_EFFECT,
    "memory.parallel_size": MEMORY_EFFECT,
    "memory.placement": MEMORY_EFFECT,
    "memory.node_size": MEMORY_EFFECT,
    "memory.overlap": MEMORY_EFFECT,
    "parallelism.tensor": EFFECT,
    "parallelism.pipeline": EFFECT,
    "parallelism.virtual_pipeline": EFFECT,
    "parallelism.sequence": EFFECT,
    "parallelism.expert": Rule(AtResume.TAKES_EFFECT, EXPERTS),
    "parallelism.timeout_seconds": EFFECT,
    "training.steps": EFFECT,
    "training.global_batch_size": EFFECT,
    "training.micro_batch_size": EFFECT,
    "training.seed": Rule(AtResume.TAKES_EFFECT, why="for the order of samples and for dropout; the weights stay"),
    "training.precision": EFFECT,
    "training.recompute": EFFECT,
    "training.deterministic": EFFECT,
    "training.eval_interval": EFFECT,
    "training.eval_batches": Rule(AtResume.TAKES_EFFECT, VALIDATION),
    "training.stop_after": EFFECT,
    "optimizer.learning_rate": EFFECT,
    "optimizer.min_learning_rate_fraction": EFFECT,
    "optimizer.warmup_fraction": EFFECT,
    "optimizer.weight_decay": EFFECT,
    "optimizer.beta1": EFFECT,
    "optimizer.beta2": EFFECT,
    "optimizer.epsilon": EFFECT,
    "optimizer.clip_gradient": EFFECT,
    "optimizer.value_lr_multiplier": MEMORY_EFFECT,
    "optimizer.value_lr_decay_fraction": MEMORY_EFFECT,
    "optimizer.table_update": MEMORY_EFFECT,
    "optimizer.table_exp_avg_dtype": MEMORY_EFFECT,
    "optimizer.table_exp_avg_sq_dtype": MEMORY_EFFECT,
    "optimizer.optimizer_cpu_offload": REFUSED,  # by the config itself
    "data.folder": Rule(AtResume.TAKES_EFFECT, FILES),
    "data.sources": Rule(AtResume.TAKES_EFFECT, FILES),
    "data.synthetic": EFFECT,
    "data.allow_change": EFFECT,
    "checkpoint.interval": EFFECT,
    "checkpoint.keep": EFFECT,
    "checkpoint.async_save": EFFECT,
    "checkpoint.load": Rule(AtResume.WITHOUT_EFFECT, why="the run has checkpoints of its own, and goes on from them"),
    "monitor.log_interval": EFFECT,
    "monitor.memory_interval": EFFECT,
    "resilience.hang_seconds": EFFECT,
    "resilience.pause_seconds": Rule(AtResume.TAKES_EFFECT, WATCH),
    "resilience.straggler_ratio": EFFECT,
    "resilience.bad_step": EFFECT,
    "resilience.loss_spike_factor": EFFECT,
    "resilience.loss_window": Rule(AtResume.TAKES_EFFECT, MEDIAN),
    "resilience.max_bad_steps": EFFECT,
    "resilience.rolled_back_steps": Rule(AtResume.TAKES_EFFECT, WAY_BACK),
}
"""Every field of every section of ``RunConfig``."""

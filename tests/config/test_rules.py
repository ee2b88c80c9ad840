"""Every rule refuses in its own words: path, value, rule, remedy."""

import re
from typing import Any

import pytest

from ultramem_megatron.config.check import require_divides
from ultramem_megatron.config.load import parse_override, resolve
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError

BASE: dict[str, Any] = {
    "model": {"layers": 4, "hidden": 32, "heads": 2, "ffn_hidden": 64, "seq_length": 32, "vocab_size": 256},
    "memory": {
        "variant": "ultramem",
        "spans": "1:2/3:4",
        "keys_per_side": 16,
        "top_m": 4,
        "heads": 2,
        "key_dim": 16,
        "value_dim": 16,
        "query_conv_kernel": 5,
    },
    "training": {"global_batch_size": 12, "micro_batch_size": 2},
}


def make(*overrides: str) -> RunConfig:
    return resolve([("base", BASE), *map(parse_override, overrides)])


EXPERTS = ("model.experts=4", "model.expert_ffn_hidden=64")
POSITIVE = [
    *(f"model.{name}" for name in ("layers", "hidden", "ffn_hidden", "heads", "seq_length", "vocab_size")),
    *(f"model.{name}" for name in ("norm_epsilon", "rope_base", "init_std")),
    *(f"memory.{name}" for name in ("keys_per_side", "top_m", "heads", "heads_per_query", "key_dim", "value_dim")),
    *(f"memory.{name}" for name in ("cores", "expansion")),
    *(f"parallelism.{name}" for name in ("tensor", "pipeline", "virtual_pipeline", "expert")),
    *(f"training.{name}" for name in ("steps", "global_batch_size", "micro_batch_size", "eval_batches")),
    *(f"optimizer.{name}" for name in ("learning_rate", "epsilon", "value_lr_multiplier", "value_lr_decay_fraction")),
    *("checkpoint.keep", "monitor.log_interval", "monitor.memory_interval", "data.sources.gcide"),
]


@pytest.mark.parametrize("path", POSITIVE)
@pytest.mark.parametrize("value", ["0", "-2"])
def test_must_be_positive(path: str, value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(f"{path}={value}")
    assert re.fullmatch(
        rf"{re.escape(path)} = {value}(\.0)? must be greater than 0; set a positive value", str(refusal.value)
    )


RULES = [
    # model
    (["model.heads=3"], r"^model\.heads = 3 must divide model\.hidden = 32; near it these do: 1, 2, 4, 8$"),
    (["model.hidden=6"], r"^model\.hidden / model\.heads = 3 must be even, because RoPE .* change model\.heads$"),
    # memory
    (["memory.expansion=5"], r"^memory\.expansion = 5 is not a square, .* the nearest squares are 4 and 9$"),
    (["memory.expansion=289"], r"^memory\.expansion = 289 must lie between 1 and 256$"),
    (["memory.keys_per_side=46341"], r"^memory\.keys_per_side = 46341 must lie between 1 and 46340$"),
    (["memory.shuffle_seed=-1"], r"^memory\.shuffle_seed = -1 must lie between 0 and 4294967295$"),
    (
        ["memory.top_m=33"],
        r"^memory\.top_m = 33 exceeds the 32 row keys of a head .* lower top_m or raise .*side_top_m$",
    ),
    (
        ["memory.tucker_rank=0"],
        r"^memory\.tucker_rank = 0 must be at least 1: .* set it to 2, .* memory\.variant = pkm",
    ),
    (["memory.tucker_rank=3"], r"^memory\.tucker_rank = 3 must divide memory\.key_dim = 16; near it these do: 1, 2, 4"),
    (["memory.cores=5"], r"^memory\.cores = 5 must divide memory\.value_dim = 16; near it these do: 1, 2, 4, 8"),
    (["memory.heads_per_query=4"], r"^memory\.heads = 2 must be a multiple of .* = 4, .* set heads to 4, or "),
    (["memory.query_conv_kernel=-1"], r"^memory\.query_conv_kernel = -1 must lie between 0 \(none\) and 1024$"),
    (["memory.auxiliary_weight=-1"], r"^memory\.auxiliary_weight = -1 must lie between 0 \(no such loss\) and 1000$"),
    (["memory.auxiliary_margin=-1"], r"^memory\.auxiliary_margin = -1 must lie between 0 and 1000$"),
    (['memory.spans=""'], r"^memory\.spans is empty though memory\.variant = ultramem; .* memory\.spans=\"1:2/3:4\"$"),
    (["memory.spans=1"], r'^memory\.spans = "1" is not a list of spans: "1" should read a:b'),
    (["memory.spans=2:1"], r'^memory\.spans = "2:1": span 2:1 is out of range or runs backwards; .* must not exceed'),
    (["memory.spans=0:1"], r'^memory\.spans = "0:1": span 0:1 is out of range or runs backwards; blocks count from 1'),
    (["memory.spans=1:2/2:3"], r"span 2:3 begins at or before block 2, where 1:2 still runs; .* start it at 3$"),
    (["memory.spans=1:5"], r"^memory\.spans: span 1:5 is out of range, the model has model\.layers = 4 blocks"),
    (["memory.parallel_size=0"], r"^memory\.parallel_size = 0 must be auto or a number of ranks from 1 to 999999$"),
    (["memory.node_size=0"], r"^memory\.node_size = 0 must be auto or a number of ranks from 1 to 999999$"),
    (["memory.parallel_size=all"], r"^memory\.parallel_size = all must be auto or a number of ranks from 1 to 999999$"),
    (["memory.parallel_size=²"], r"^memory\.parallel_size = ² must be auto or a number of ranks from 1 to 999999$"),
    (["memory.partition=columns"], r"^memory\.partition = columns is not one of .*; the nearest is \"\w+\"$"),
    (["memory.variant=ultramen"], r'^memory\.variant = ultramen is not one of .*; the nearest is "ultramem"$'),
    # parallelism
    (["parallelism.expert=2"], r"^parallelism\.expert = 2 needs a model with experts, and model\.experts = 0; set it"),
    ([*EXPERTS, "parallelism.expert=3"], r"^parallelism\.expert = 3 must divide model\.experts = 4; .*: 1, 2, 4$"),
    (
        [*EXPERTS, "parallelism.tensor=2"],
        r"^parallelism\.tensor = 2 with model\.experts = 4 .*parallelism\.sequence=true$",
    ),
    (
        [*EXPERTS, "parallelism.tensor=2", "parallelism.sequence=true", "model.expert_ffn_hidden=63"],
        r"^parallelism\.tensor = 2 must divide model\.expert_ffn_hidden = 63; ",
    ),
    ([*EXPERTS, "parallelism.expert=2"], r"^parallelism\.expert = 2 with memory\.variant = ultramem: .* to 1$"),
    (["model.experts=-1"], r"^model\.experts = -1 must lie between 0 \(a dense MLP\) and 4096$"),
    (["model.experts=4"], r"^model\.expert_ffn_hidden = 0 must be greater than 0"),
    (
        [*EXPERTS, "model.experts_per_token=5"],
        r"^model\.experts_per_token = 5 must lie between 1 and model\.experts = 4$",
    ),
    ([*EXPERTS, "model.expert_balance_weight=-1"], r"^model\.expert_balance_weight = -1 must lie between 0 and 1000$"),
    (["model.dropout=1"], r"^model\.dropout = 1\.0 must be 0 \(none\) or a share below 1$"),
    (["memory.dropout=-0.5"], r"^memory\.dropout = -0\.5 must lie between 0 and 1$"),
    (["memory.pre_value_dim=8"], r"^memory\.pre_value_dim = 8 needs memory\.variant = ultramem_v2, not ultramem"),
    (["memory.variant=ultramem_v2"], r"^memory\.pre_value_dim = 0 must be greater than 0"),
    (["memory.side_top_m=1"], r"^memory\.side_top_m = 1 gives 1 pairs .* memory\.top_m = 4 .* to at least 2, or to 0"),
    (
        ["memory.keys_per_side=2", "memory.expansion=1", "memory.side_top_m=2"],
        r"^memory\.top_m = 4 takes every slot of a head, 2 x 2, ",
    ),
    (
        ["memory.side_top_m=33"],
        r"^memory\.side_top_m = 33 exceeds the 32 row keys of a head .*; lower side_top_m or raise",
    ),
    (["memory.cores=3"], r"^memory\.cores = 3 must divide memory\.value_dim = 16; near it these do: "),
    (["memory.expansion=3"], r"^memory\.expansion = 3 is not a square, .* 1 and 4$"),
    (
        ["memory.heads=3"],
        r"^memory\.heads = 3 must be a multiple of memory\.heads_per_query = 2, .* set heads to 4, or ",
    ),
    (["parallelism.virtual_pipeline=2"], r"^parallelism\.virtual_pipeline = 2 needs parallelism\.pipeline above 1$"),
    (["parallelism.sequence=true"], r"^parallelism\.sequence = true needs parallelism\.tensor above 1$"),
    (["parallelism.tensor=4"], r"^parallelism\.tensor = 4 must divide model\.heads = 2; .* these do: 1, 2$"),
    (["parallelism.tensor=2", "model.ffn_hidden=63"], r"^parallelism\.tensor = 2 must divide model\.ffn_hidden = 63"),
    (["parallelism.tensor=2", "model.seq_length=33"], r"^parallelism\.tensor = 2 must divide model\.seq_length = 33"),
    (
        ["parallelism.tensor=2", "model.seq_length=6"],
        r"^memory\.query_conv_kernel = 5 reaches back 4 tokens, .* holds 3",
    ),
    (["parallelism.pipeline=3"], r"^parallelism\.pipeline \* virtual_pipeline = 3 must divide model\.layers = 4"),
    # training
    (["training.micro_batch_size=5"], r"^training\.micro_batch_size = 5 must divide training\.global_batch_size = 12"),
    (["training.eval_interval=-1"], r"^training\.eval_interval = -1 must lie between 0 \(never\) and 1000000000$"),
    (["training.stop_after=-1"], r"^training\.stop_after = -1 must lie between 0 \(never\) and 1000000000$"),
    (["training.seed=-1"], r"^training\.seed = -1 must lie between 0 and 4294967295$"),
    (["training.seed=4294967296"], r"^training\.seed = 4294967296 must lie between 0 and 4294967295$"),
    (["training.precision=fp8"], r'^training\.precision = fp8 is not one of bf16, fp32; the nearest is "fp32"$'),
    (["training.recompute=all"], r"^training\.recompute = all is not one of none, selective, full; the nearest is"),
    # optimizer
    (["optimizer.warmup_fraction=1.5"], r"^optimizer\.warmup_fraction = 1\.5 must lie between 0 and 1$"),
    (["optimizer.min_learning_rate_fraction=-0.1"], r"^optimizer\.min_learning_rate_fraction = -0\.1 must lie between"),
    (["optimizer.beta1=1"], r"^optimizer\.beta1 = 1 must lie below 1"),
    (["optimizer.beta2=1.0"], r"^optimizer\.beta2 = 1 must lie below 1"),
    (["optimizer.beta2=1.1"], r"^optimizer\.beta2 = 1\.1 must lie between 0 and 1$"),
    (["optimizer.weight_decay=-1"], r"^optimizer\.weight_decay = -1 must lie between 0 and 100$"),
    (["optimizer.clip_gradient=-1"], r"^optimizer\.clip_gradient = -1 must lie between 0 \(none\) and 1e\+06$"),
    (
        ["optimizer.table_exp_avg_sq_dtype=bf16", "optimizer.beta2=0.999"],
        r"^optimizer\.table_exp_avg_sq_dtype = bf16 with optimizer\.beta2 = 0\.999: .* lower beta2 to 0\.99 or less",
    ),
    (["optimizer.table_exp_avg_dtype=bf16", "optimizer.beta1=0.995"], r"^optimizer\.table_exp_avg_dtype = bf16 with "),
    (
        ["optimizer.optimizer_cpu_offload=true"],
        r"^optimizer\.optimizer_cpu_offload = true is not offered: .* to false,",
    ),
    (
        ["memory.variant=none", "optimizer.table_update=lazy", "optimizer.table_exp_avg_dtype=bf16"],
        r"^optimizer\.table_update = lazy, optimizer\.table_exp_avg_dtype = bf16 is for value tables, and "
        r"memory\.variant = none has none; leave it out",
    ),
    # the rest
    (["checkpoint.interval=-1"], r"^checkpoint\.interval = -1 must lie between 0 \(at the end alone\) and 1000000000$"),
    (['data.folder=""'], r"^data\.folder is empty; name a folder made by `ultramem data build`$"),
]


@pytest.mark.parametrize(("overrides", "message"), RULES, ids=[" ".join(overrides) for overrides, _ in RULES])
def test_rule(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(*overrides)


WORLD_RULES = [
    (["parallelism.tensor=2"], 3, r"^parallelism\.tensor \* pipeline = 2 must divide the number of ranks = 3"),
    ([], 4, r"^training\.global_batch_size = 12 .* times 4 data-parallel ranks = 8; near it these are: 8, 16$"),
    ([], 8, r"^training\.global_batch_size = 12 .* times 8 data-parallel ranks = 16; near it these are: 16$"),
    (["memory.parallel_size=4"], 6, r"^memory\.parallel_size = 4 must divide the ranks of one pipeline stage = 6"),
    (["memory.parallel_size=4", "parallelism.pipeline=2"], 4, r"^memory\.parallel_size = 4 .* stage = 2; .* do: 1, 2$"),
    (
        ["parallelism.pipeline=2", "parallelism.virtual_pipeline=2", "memory.spans=1:1", "training.micro_batch_size=4"],
        2,
        r"^3 micro-batches must be a multiple of parallelism\.pipeline = 2 .* change training\.global_batch_size$",
    ),
]


@pytest.mark.parametrize(("overrides", "world_size", "message"), WORLD_RULES)
def test_rule_on_the_number_of_ranks(overrides: list[str], world_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(*overrides).check_world_size(world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_fitting_numbers_of_ranks_are_taken(world_size: int) -> None:
    make().check_world_size(world_size)


def test_a_span_may_end_on_a_later_pipeline_stage() -> None:
    config = make("parallelism.pipeline=2", "memory.spans=2:3")
    assert [(span.read, span.add) for span in config.memory.span_list] == [(2, 3)]


def test_rules_of_memory_layers_do_not_bind_a_dense_model() -> None:
    config = make("memory.variant=none", "memory.spans=9:1", "memory.top_m=99", "memory.parallel_size=7")
    assert config.memory.span_list == ()
    config.check_world_size(2)


def test_derived_sizes() -> None:
    config = make("memory.expansion=9", "model.vocab_size=300")
    assert (config.memory.num_rows, config.memory.grid_side, config.memory.picks) == (256, 48, 8)
    assert [str(span) for span in config.memory.span_list] == ["1:2", "3:4"]
    assert config.model.padded_vocab_size == 384


@pytest.mark.parametrize(("divisor", "value", "near"), [(8, 12, "3, 4, 6, 12"), (5, 10**12 + 39, f"1, {10**12 + 39}")])
def test_the_nearest_divisors_are_named_at_once(divisor: int, value: int, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"^a = {divisor} must divide b = {value}; near it these do: {near}$"):
        require_divides("a", divisor, "b", value)

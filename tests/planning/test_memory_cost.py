"""Bytes of a rank: exact parts by hand, and how they move with the layout."""

from dataclasses import replace

import pytest

from ultramem_megatron.config.load import resolve
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.memory_cost import (
    MemoryCost,
    layer_shard_elements,
    rank_memory,
    shard_elements,
    weight_state_bytes,
)
from ultramem_megatron.planning.model_size import count_parameters
from ultramem_megatron.planning.workload import workload_of

NUMBER_WISE, DIMENSION_WISE, REPLICATED = (
    PartitionName.NUMBER_WISE,
    PartitionName.DIMENSION_WISE,
    PartitionName.REPLICATED,
)

PRE_VALUES: dict[str, object] = {"variant": "ultramem_v2", "pre_value_dim": 30}


def make_config(precision: str = "bf16", **sections: dict[str, object]) -> RunConfig:
    memory = {"variant": "ultramem", "spans": "1:2/3:4", "keys_per_side": 100, "value_dim": 64}
    return resolve([("test", {"memory": memory, "training": {"precision": precision}}), ("test", dict(sections))])


def cost(config: RunConfig, partition: PartitionName, ranks: int, world_size: int = 4) -> MemoryCost:
    return rank_memory(config, workload_of(config, world_size), partition, ranks)


def test_table_bytes_by_hand() -> None:
    """2 tables of 640,000 values, halved; bf16: 2 + 4 bytes a value, 12 of optimizer state over 2 copies."""
    memory = cost(make_config(), NUMBER_WISE, 2)
    assert memory.table_weights == 2 * 320_000 * 2
    assert memory.table_gradients == 2 * 320_000 * 4
    assert memory.table_optimizer == 2 * 320_000 * 12 / 2


def test_fp32_needs_no_master_weights() -> None:
    assert weight_state_bytes(100, element_bytes=4, optimizer_ranks=1) == (400, 400, 800)
    assert weight_state_bytes(100, element_bytes=2, optimizer_ranks=1) == (200, 400, 1200)
    assert weight_state_bytes(100, element_bytes=2, optimizer_ranks=4) == (200, 400, 300)


def test_the_largest_shard_counts() -> None:
    assert shard_elements(10, 6, NUMBER_WISE, 3) == 4 * 6
    assert shard_elements(10, 6, PartitionName.NUMBER_WISE_POOLED, 3) == 4 * 6
    assert shard_elements(10, 6, DIMENSION_WISE, 3) == 10 * 2
    assert shard_elements(10, 6, PartitionName.GRID, 6, node_size=2) == 4 * 3
    assert shard_elements(10, 6, REPLICATED, 1) == 60


def test_pre_values_are_held_beside_the_values() -> None:
    """2 layers of 10,000 rows of 64 + 30 columns, halved; 4 ranks, hence 2 copies."""
    config = make_config(memory=PRE_VALUES)
    assert layer_shard_elements(config.memory, NUMBER_WISE, 3) == 3334 * (64 + 30)
    assert layer_shard_elements(config.memory, DIMENSION_WISE, 4) == 10_000 * (16 + 8), "each table is rounded up"
    memory = cost(config, DIMENSION_WISE, 2)
    assert memory.table_weights == 2 * 470_000 * 2
    assert memory.table_gradients == 2 * 470_000 * 4
    assert memory.table_optimizer == 2 * 470_000 * 12 / 2


@pytest.mark.parametrize(
    ("partition", "ranks", "bytes_of_token"),
    [
        (REPLICATED, 1, 32 * 4 + 30 * 2),
        (DIMENSION_WISE, 2, 32 * 4 + 30 * 2 + 2 * 32 * 4),
    ],
)
def test_buffers_of_inner_products_by_hand(partition: PartitionName, ranks: int, bytes_of_token: int) -> None:
    """32 picks: fp32 products and a vector of 30, and the row numbers of two ranks."""
    assert product_buffers(partition, ranks) == 2 * 1024 * bytes_of_token


def test_buffers_of_number_wise_products_by_hand() -> None:
    """Beside products and vectors the place of each pick's row, and once each row that came and its number."""
    rows = 10_000 * (1 - 0.9999 ** (1024 * 32))
    by_hand = 1024 * (32 * 4 + 30 * 2 + 32 * 8) + rows * (30 * 2 + 4)
    assert product_buffers(NUMBER_WISE, 2) == pytest.approx(2 * by_hand)


def test_buffers_of_products_in_a_grid_by_hand() -> None:
    """The places of the picks of both ranks of a node, and halves of the rows that these need together."""
    rows = 10_000 * (1 - 0.9999 ** (2 * 1024 * 32))
    by_hand = 1024 * (32 * 4 + 30 * 2 + 2 * 32 * 8) + rows * (15 * 2 + 4)
    assert product_buffers(PartitionName.GRID, 4, node_size=2) == pytest.approx(2 * by_hand)


def test_buffers_of_products_at_the_owners_by_hand() -> None:
    """The picks of others (row number, group), whose vectors both owners need but for 1 in 2**31; order, own groups."""
    by_hand = 1024 * (32 * 4 + 30 * 2 + 32 * (4 + 8) + 2 * 30 * 2 + 32 * 2 * 8)
    assert product_buffers(PartitionName.NUMBER_WISE_POOLED, 2) == pytest.approx(2 * by_hand)


def test_pooling_at_the_owners_keeps_no_rows() -> None:
    config = make_config()
    pooled, rows = (cost(config, p, 2).lookup_buffers for p in (PartitionName.NUMBER_WISE_POOLED, NUMBER_WISE))
    kept = 64 * 4 + 4 * 2 * 4 + 1 - 24
    assert rows - pooled == 2 * 1024 * 32 * kept, (
        "a row of 64 and weights of 4 x 2, in fp32, a block; less three places"
    )


def product_buffers(partition: PartitionName, ranks: int, node_size: int = 1) -> float:
    """What pre-values add to the buffers of two layers, with 1024 tokens and 10,000 rows."""
    workload = workload_of(make_config(memory=PRE_VALUES), 4)
    plain = replace(workload, lookup=replace(workload.lookup, pre_value_dim=0))
    config = make_config(memory=PRE_VALUES)
    buffers, without = (rank_memory(config, w, partition, ranks, node_size).lookup_buffers for w in (workload, plain))
    return buffers - without


@pytest.mark.parametrize("partition", [NUMBER_WISE, DIMENSION_WISE])
def test_optimizer_state_of_tables_does_not_depend_on_the_group_size(partition: PartitionName) -> None:
    """P shards times M copies of the state's splits cover the same ranks whatever P is."""
    halves, quarters = cost(make_config(), partition, 2), cost(make_config(), partition, 4)
    assert halves.table_optimizer == quarters.table_optimizer
    assert halves.table_weights == 2 * quarters.table_weights


@pytest.mark.parametrize("memory_section", [{}, PRE_VALUES, {"variant": "pkm"}], ids=["ultramem", "v2", "pkm"])
def test_one_rank_holds_every_parameter(memory_section: dict[str, object]) -> None:
    config = make_config("fp32", memory=memory_section)
    counts = count_parameters(config)
    memory = cost(config, REPLICATED, 1, world_size=1)
    assert memory.dense_weights == 4 * (counts.dense + counts.norms + counts.embedding)
    assert memory.table_weights == 4 * counts.tables


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_of_one_stage_are_held_once(tied: bool) -> None:
    config = make_config(model={"tie_embeddings": tied})
    counts = count_parameters(config)
    assert cost(config, REPLICATED, 1, world_size=1).dense_weights == 2 * (
        counts.dense + counts.norms + counts.embedding
    )


def test_tied_embeddings_of_several_stages_are_held_twice() -> None:
    tied = make_config(model={"tie_embeddings": True}, parallelism={"pipeline": 2})
    apart = make_config(model={"tie_embeddings": False}, parallelism={"pipeline": 2})
    assert cost(tied, REPLICATED, 1, 2).dense_weights == cost(apart, REPLICATED, 1, 2).dense_weights


def test_tensor_parallel_splits_blocks_but_not_the_memory_layers_dense_part() -> None:
    config = make_config("fp32", parallelism={"tensor": 2})
    counts = count_parameters(config)
    split = counts.attention + counts.mlp + counts.embedding
    expected = 4 * (split / 2 + counts.norms + counts.memory_dense)
    assert cost(config, REPLICATED, 1).dense_weights == expected


def test_parts_sum_to_the_total_and_none_is_negative() -> None:
    memory = cost(make_config(), DIMENSION_WISE, 4)
    assert sum(memory.parts.values()) == memory.total_bytes
    assert all(count > 0 or name.startswith("expert") for name, count in memory.parts.items())
    assert memory.expert_weights == memory.expert_gradients == memory.expert_optimizer == 0


def test_gathered_picks_grow_with_the_group_only_dimension_wise() -> None:
    config = make_config()
    assert cost(config, DIMENSION_WISE, 4).lookup_buffers > cost(config, DIMENSION_WISE, 2).lookup_buffers
    assert cost(config, NUMBER_WISE, 4).lookup_buffers == cost(config, NUMBER_WISE, 2).lookup_buffers


def test_sequence_parallel_keeps_fewer_activations() -> None:
    plain = cost(make_config(parallelism={"tensor": 2}), REPLICATED, 1)
    sequence = cost(make_config(parallelism={"tensor": 2, "sequence": True}), REPLICATED, 1)
    assert sequence.activations < plain.activations


@pytest.mark.parametrize("parallelism", [{}, {"tensor": 2}, {"tensor": 2, "sequence": True}])
def test_recomputed_activations_by_hand(parallelism: dict[str, object]) -> None:
    """4 blocks, 4 x 256 tokens, 128 wide, 4 heads, bf16: the scores are 5 * 4 * 256 / 128 of 2 bytes a channel."""
    tensor, sequence = int(str(parallelism.get("tensor", 1))), "sequence" in parallelism
    logits = 4 * 256 * 8192 * (2 + 4) / tensor
    unit = 4 * 256 * 128  # bytes in the paper's terms, which are for 2 bytes an element
    found = {
        mode: cost(make_config(training={"recompute": mode}, parallelism=parallelism), REPLICATED, 1).activations
        for mode in ("none", "selective", "full")
    }
    linear = 34 / tensor if sequence else 10 + 24 / tensor
    scores = 40 / tensor
    assert found["none"] == 4 * unit * (linear + scores) + logits
    assert found["selective"] == unit * (4 * linear + scores) + logits
    assert found["full"] == unit * (4 * (2 / tensor if sequence else 2) + linear + scores) + logits


def test_the_optimizer_state_is_split_over_the_copies_in_a_stage() -> None:
    """8 ranks = tensor 2 x data 2 x pipeline 2; groups of 2 leave 2 copies of a shard in a stage of 4."""
    config = make_config(parallelism={"tensor": 2, "pipeline": 2}, memory={"spans": "1:1/2:2"})
    memory = cost(config, NUMBER_WISE, 2, world_size=8)
    assert memory.table_optimizer == 12 * 2 * 320_000 / 2
    assert memory.dense_optimizer == 12 * (memory.dense_weights / 2) / 2


def test_the_first_stage_holds_the_activations_of_more_micro_batches() -> None:
    """4 blocks, 2 stages, 4 micro-batches. Tables on stage 0 make it the fuller one: 2 x 2 blocks, no logits."""
    parallelism, small_vocabulary = {"pipeline": 2}, {"vocab_size": 128}
    first = make_config(parallelism=parallelism, model=small_vocabulary, memory={"spans": "1:1/2:2"})
    whole = make_config(model=small_vocabulary, memory={"spans": "1:1/2:2"})
    logits = 4 * 256 * 128 * (2 + 4)
    assert cost(whole, REPLICATED, 1, 1).activations - cost(first, REPLICATED, 1, 2).activations == logits
    assert cost(first, REPLICATED, 1, 2).lookup_buffers == 2 * cost(whole, REPLICATED, 1, 1).lookup_buffers


def test_the_fuller_stage_counts() -> None:
    """Tables on the last stage: half of the blocks of one micro-batch there, and the logits."""
    last = make_config(parallelism={"pipeline": 2}, memory={"spans": "3:3/4:4", "keys_per_side": 500})
    whole = make_config(memory={"spans": "3:3/4:4", "keys_per_side": 500})
    logits = 4 * 256 * 8192 * (2 + 4)
    blocks = cost(whole, REPLICATED, 1, 1).activations - logits
    fuller = cost(last, REPLICATED, 1, 2)
    assert fuller.table_weights == 2 * 2 * 250_000 * 64
    assert fuller.activations == blocks / 2 + logits


def test_experts_are_split_over_the_ranks_that_share_them() -> None:
    """4 data-parallel ranks, 2 of which share the experts: each holds half of them, and 2 ranks hold the same half."""
    experts = {"model": {"experts": 4, "expert_ffn_hidden": 96}, "memory": {"variant": "none"}}
    whole, halves = make_config(**experts), make_config(**experts, parallelism={"expert": 2})
    counts = count_parameters(whole)
    alone, shared = cost(whole, REPLICATED, 1, world_size=1), cost(halves, REPLICATED, 1)
    assert alone.expert_weights == 2 * counts.experts > 0
    assert alone.dense_weights == 2 * (counts.dense + counts.norms + counts.embedding), (
        "the router is in the dense part"
    )
    assert shared.expert_weights == counts.experts
    assert shared.expert_gradients == 4 * counts.experts / 2
    assert shared.expert_optimizer == 12 * counts.experts / 2 / 2

"""Bytes of memory of one rank, by part, on the most loaded pipeline stage.

Weights, gradients and optimizer state are counted exactly (Megatron's padding apart); activations and lookup
buffers are estimates, which on a GPU hold the plans of ``plan_buffers.py`` too. Not counted: the reserve of the
cluster, the workspace of other kernels and of collectives.
"""

from dataclasses import dataclass, fields

from ultramem_megatron.config.memory import MemoryConfig, PartitionName
from ultramem_megatron.config.optimizer import MomentType, OptimizerConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Recompute
from ultramem_megatron.planning.comm_cost import (
    BF16_BYTES,
    FP32_BYTES,
    INT32_BYTES,
    INT64_BYTES,
    UINT8_BYTES,
    LookupShape,
)
from ultramem_megatron.planning.model_size import (
    attention_parameters,
    embedding_parameters,
    expert_parameters,
    memory_dense_parameters,
    memory_norm_parameters,
    mlp_parameters,
    router_parameters,
)
from ultramem_megatron.planning.plan_buffers import partial_bytes, plan_bytes
from ultramem_megatron.planning.skew import expected_distinct
from ultramem_megatron.planning.workload import Workload

ADAM_MOMENTS_BYTES = 2 * FP32_BYTES
"""Of an element, unless ``optimizer.table_exp_avg_dtype`` and its like say otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryCost:
    """Bytes of one rank. ``optimizer``: fp32 master weights (bf16 only) and two moments."""

    table_weights: float = 0
    table_gradients: float = 0
    table_optimizer: float = 0
    dense_weights: float = 0
    dense_gradients: float = 0
    dense_optimizer: float = 0
    expert_weights: float = 0
    expert_gradients: float = 0
    expert_optimizer: float = 0
    activations: float = 0
    lookup_buffers: float = 0

    @property
    def parts(self) -> dict[str, float]:
        """Name -> bytes, in the order of the report."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def total_bytes(self) -> float:
        """All parts."""
        return sum(self.parts.values())


# Letters: L, ``node_size``, ranks of the group inside a node; it matters to a grid alone.


def rank_memory(
    config: RunConfig,
    workload: Workload,
    partition: PartitionName,
    ranks: int,
    node_size: int = 1,
    *,
    on_gpu: bool = False,
) -> MemoryCost:
    """Memory of a rank of the stage that needs most, with tables split by ``partition`` over ``ranks`` ranks.

    Args:
        config: The run.
        workload: What it makes a rank do.
        partition: How tables are split.
        ranks: P.
        node_size: L.
        on_gpu: Whether gradients are summed by plans, which a CPU does without.
    """
    stages = range(config.parallelism.pipeline)
    costs = (_stage_memory(config, workload, partition, ranks, node_size, stage, on_gpu) for stage in stages)
    return max(costs, key=lambda cost: cost.total_bytes)


def shard_elements(num_rows: int, value_dim: int, partition: PartitionName, ranks: int, node_size: int = 1) -> int:
    """Elements of the largest shard of one table; rows that do not divide evenly go to the first ranks."""
    match partition:
        case PartitionName.NUMBER_WISE | PartitionName.NUMBER_WISE_POOLED:
            return -(-num_rows // ranks) * value_dim
        case PartitionName.DIMENSION_WISE:
            return num_rows * -(-value_dim // ranks)
        case PartitionName.GRID:
            return -(-num_rows * node_size // ranks) * -(-value_dim // node_size)
        case PartitionName.REPLICATED:
            return num_rows * value_dim
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")


def layer_shard_elements(memory: MemoryConfig, partition: PartitionName, ranks: int, node_size: int = 1) -> int:
    """Elements of the largest shards of one memory layer: of its values, and of its pre-values where it has any."""
    widths = (memory.value_dim, memory.pre_value_dim)
    return sum(shard_elements(memory.num_rows, width, partition, ranks, node_size) for width in widths)


def weight_state_bytes(
    parameters: float, element_bytes: int, optimizer_ranks: int, moments_bytes: int = ADAM_MOMENTS_BYTES
) -> tuple[float, float, float]:
    """(weights, fp32 gradients, optimizer state) in bytes.

    Args:
        parameters: Parameters on this rank.
        element_bytes: 2 for bf16, which needs fp32 master weights, or 4 for fp32, which does not.
        optimizer_ranks: Ranks over which the distributed optimizer splits master weights and moments.
        moments_bytes: Of both moments of an element.
    """
    master_bytes = FP32_BYTES if element_bytes < FP32_BYTES else 0
    state = (master_bytes + moments_bytes) * parameters / optimizer_ranks
    return element_bytes * parameters, FP32_BYTES * parameters, state


def table_moments_bytes(optimizer: OptimizerConfig) -> int:
    """Of both moments of an element of a value table."""
    types = (optimizer.table_exp_avg_dtype, optimizer.table_exp_avg_sq_dtype)
    return sum(BF16_BYTES if kept is MomentType.BF16 else FP32_BYTES for kept in types)


def _stage_memory(
    config: RunConfig,
    workload: Workload,
    partition: PartitionName,
    ranks: int,
    node_size: int,
    stage: int,
    on_gpu: bool,
) -> MemoryCost:
    tables = workload.tables_of_stage[stage]
    shard = layer_shard_elements(config.memory, partition, ranks, node_size)
    copies = workload.stage_ranks // ranks
    moments_bytes = table_moments_bytes(config.optimizer)
    table = weight_state_bytes(tables * shard, workload.element_bytes, copies, moments_bytes)
    dense = weight_state_bytes(_dense_parameters(config, tables, stage), workload.element_bytes, workload.data_ranks)
    expert_copies = workload.data_ranks // config.parallelism.expert
    experts = weight_state_bytes(_expert_parameters(config), workload.element_bytes, expert_copies)
    # 1F1B: a stage holds the activations of as many micro-batches as there are stages from here to the end
    in_flight = min(workload.micro_batches, config.parallelism.pipeline - stage)
    lookups = in_flight * tables * _layer_buffers(workload.lookup, partition, ranks, node_size)
    if on_gpu and tables:
        lookups += in_flight * tables * plan_bytes(workload.lookup, partition, ranks, node_size)
        lookups += partial_bytes(workload.lookup, partition, ranks, node_size)
    return MemoryCost(
        table_weights=table[0],
        table_gradients=table[1],
        table_optimizer=table[2],
        dense_weights=dense[0],
        dense_gradients=dense[1],
        dense_optimizer=dense[2],
        expert_weights=experts[0],
        expert_gradients=experts[1],
        expert_optimizer=experts[2],
        activations=_activations(config, workload, in_flight) + _logits(config, workload, stage),
        lookup_buffers=lookups,
    )


def _dense_parameters(config: RunConfig, tables: int, stage: int) -> float:
    """Parameters on one rank of ``stage``. Norms and the dense part of memory layers are not tensor-split."""
    model, parallelism = config.model, config.parallelism
    blocks = model.layers // parallelism.pipeline
    last = stage == parallelism.pipeline - 1
    split = blocks * (attention_parameters(model) + mlp_parameters(model))
    # tied weights live on the first and on the last stage too, but only once when these are the same
    embeddings = (stage == 0) + (last and not (model.tie_embeddings and stage == 0))
    split += embeddings * embedding_parameters(model)
    whole = (2 * blocks + last) * model.hidden + blocks * router_parameters(model)
    if tables:
        whole += tables * (memory_dense_parameters(config) + memory_norm_parameters(config))
    return split / parallelism.tensor + whole


def _expert_parameters(config: RunConfig) -> float:
    """Parameters of experts on one rank: they are split over expert and over tensor parallelism."""
    model, parallelism = config.model, config.parallelism
    held = model.layers // parallelism.pipeline * model.experts * expert_parameters(model)
    return held / (parallelism.expert * parallelism.tensor)


def _activations(config: RunConfig, workload: Workload, in_flight: int) -> float:
    """Kept from forward to backward in all blocks of a stage, for ``in_flight`` micro-batches, and recomputed.

    Per block s b h (10 + 24 / t + 5 a s / (h t)) bytes at two bytes an element, or (10 + 24) / t with sequence
    parallelism; the last term is that of the scores, which selective recomputation spares; full recomputation keeps
    2 s b h: Korthikanti et al., arXiv 2205.05198, sections 4 and 5. It holds for unfused attention, a 4 h wide MLP
    and dropout; a fused attention keeps less.
    """
    model, parallelism = config.model, config.parallelism
    tensor = parallelism.tensor
    linear = 34 / tensor if parallelism.sequence else 10 + 24 / tensor
    scores = 5 * model.heads * model.seq_length / (model.hidden * tensor)
    # kept by each block, and computed again, which is there for one block at a time
    kept, again = {
        Recompute.NONE: (linear + scores, 0),
        Recompute.SELECTIVE: (linear, scores),
        Recompute.FULL: (2 / tensor if parallelism.sequence else 2, linear + scores),
    }[config.training.recompute]
    units = in_flight * model.layers // parallelism.pipeline * kept + again
    return workload.micro_batch_tokens * model.hidden * units * workload.element_bytes / BF16_BYTES


def _logits(config: RunConfig, workload: Workload, stage: int) -> float:
    """Logits of the last stage and their fp32 copy in the loss."""
    if stage != config.parallelism.pipeline - 1:
        return 0
    entries = workload.micro_batch_tokens * config.model.padded_vocab_size / config.parallelism.tensor
    return entries * (workload.element_bytes + FP32_BYTES)


def _layer_buffers(shape: LookupShape, partition: PartitionName, ranks: int, node_size: int) -> float:
    """Kept from forward to backward for one layer."""
    products = _product_buffers(shape, partition, ranks, node_size) if shape.pre_value_dim else 0
    return lookup_buffers(shape, partition, ranks, node_size) + products


def lookup_buffers(shape: LookupShape, partition: PartitionName, ranks: int, node_size: int = 1) -> float:
    """Bytes that one lookup keeps for its backward pass: picks, scores, pooled vectors, rows that came from others.

    Rows of the table itself are read again.
    """
    picks = shape.tokens * shape.picks
    pick_bytes = INT32_BYTES + UINT8_BYTES + shape.cores * shape.element_bytes
    pooled = shape.tokens * shape.expansion * shape.value_dim * shape.element_bytes
    match partition:
        case PartitionName.NUMBER_WISE:
            # the rows that came, each once, the place of each pick's, and the row numbers that others asked for
            came = expected_distinct(picks, shape.num_rows) * (shape.value_dim * shape.element_bytes + INT32_BYTES)
            return picks * (INT64_BYTES + UINT8_BYTES + shape.cores * shape.element_bytes) + came + pooled
        case PartitionName.NUMBER_WISE_POOLED:
            # the picks of others, as many as its own, each with its group; the order of its own, and where sums belong
            return picks * (INT32_BYTES + 2 * INT64_BYTES + shape.cores * shape.element_bytes + INT64_BYTES) + pooled
        case PartitionName.DIMENSION_WISE:
            # every rank pools the tokens of all, a P-th of the columns each: as much as its own tokens in full width;
            # gathered scores are fp32, and those of the cores that its columns belong to are kept
            kept_bytes = INT32_BYTES + UINT8_BYTES + -(-shape.cores // ranks) * FP32_BYTES
            return picks * ranks * kept_bytes + pooled
        case PartitionName.GRID:
            # dimension-wise inside the node; but a pick has the place of its row among those that came, and the row
            # numbers that other nodes asked for are kept too
            kept_bytes = INT64_BYTES + UINT8_BYTES + -(-shape.cores // node_size) * FP32_BYTES
            distinct = expected_distinct(picks * node_size, shape.num_rows)
            row_bytes = INT32_BYTES + shape.value_dim // node_size * shape.element_bytes
            return picks * node_size * kept_bytes + distinct * row_bytes + pooled
        case PartitionName.REPLICATED:
            return picks * pick_bytes + pooled
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")


def _product_buffers(shape: LookupShape, partition: PartitionName, ranks: int, node_size: int) -> float:
    """Of the inner products: products, vectors, and what is needed to read the rows again, or the received rows."""
    picks = shape.tokens * shape.picks
    # dimension-wise too: the tokens of all, a P-th of the columns each
    kept = FP32_BYTES * picks + shape.tokens * shape.pre_value_dim * shape.element_bytes
    match partition:
        case PartitionName.NUMBER_WISE:
            # the rows that came, each once, the place of each pick's, and the row numbers that others asked for
            came = expected_distinct(picks, shape.num_rows)
            return kept + picks * INT64_BYTES + came * (shape.pre_value_dim * shape.element_bytes + INT32_BYTES)
        case PartitionName.NUMBER_WISE_POOLED:
            # the picks of others, each with its group, and their vectors; the order of its own, and whose vectors left
            vectors = shape.tokens * expected_distinct(shape.picks, ranks)
            came = picks * (INT32_BYTES + INT64_BYTES) + vectors * shape.pre_value_dim * shape.element_bytes
            return kept + came + picks * 2 * INT64_BYTES
        case PartitionName.DIMENSION_WISE:
            return kept + picks * ranks * INT32_BYTES
        case PartitionName.GRID:
            # as number-wise, for the tokens of the node and an L-th of the columns
            came = expected_distinct(picks * node_size, shape.num_rows)
            row_bytes = shape.pre_value_dim / node_size * shape.element_bytes + INT32_BYTES
            return kept + picks * node_size * INT64_BYTES + came * row_bytes
        case PartitionName.REPLICATED:
            return kept
        case PartitionName.AUTO:
            raise AssertionError("a plan names a partition; auto is for the config")

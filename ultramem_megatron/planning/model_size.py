"""Parameter counts and forward FLOPs of a run, from its config alone."""

from dataclasses import dataclass

from ultramem_megatron.config.memory import MemoryConfig
from ultramem_megatron.config.model import ModelConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.memory_shape import memory_shape

FLOPS_PER_PARAMETER = 2  # one multiplication, one addition


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Parameters of the whole model, each counted once however many ranks hold it."""

    attention: int
    mlp: int
    """Dense MLPs; 0 with experts."""

    router: int
    """What chooses the experts."""

    memory_dense: int
    """Queries, keys, cores, convolutions and projections of the memory layers."""

    norms: int
    """Scales of all norms. Apart from ``dense``, because the paper's counts leave them out."""

    experts: int
    active_experts: int
    """The part of ``experts`` that one token goes through."""

    tables: int
    embedding: int
    """Input and output embedding; one when they are tied."""

    @property
    def dense(self) -> int:
        """Weights that each token goes through, embeddings and norms apart: the paper's "dense" column."""
        return self.attention + self.mlp + self.router + self.memory_dense

    @property
    def total_without_embedding(self) -> int:
        """The paper's "Param" column."""
        return self.dense + self.experts + self.tables

    @property
    def activated(self) -> int:
        """Weights that one token meets in matrix products, embeddings apart."""
        return self.dense + self.active_experts

    @property
    def flops_per_token(self) -> int:
        """Forward pass, the paper's "FLOPs" column: 2 x activated parameters without embeddings. Attention scores,
        the reading of table rows (additions, not a matrix product) and the router are left out, as there: with
        the router its largest mixture of experts would have 3.53 G and not the 3.52 G printed."""
        return FLOPS_PER_PARAMETER * (self.activated - self.router)

    def to_dict(self) -> dict[str, int]:
        """The machine-readable summary."""
        names = ("dense", "experts", "tables", "norms", "embedding", "total_without_embedding", "activated")
        return {name: getattr(self, name) for name in names}


def count_parameters(config: RunConfig) -> ParameterCounts:
    """Count the parameters of ``config``."""
    model = config.model
    memory_layers = len(config.memory.span_list)
    embeddings = 1 if model.tie_embeddings else 2
    one_expert = expert_parameters(model)
    return ParameterCounts(
        attention=model.layers * attention_parameters(model),
        mlp=model.layers * mlp_parameters(model),
        router=model.layers * router_parameters(model),
        memory_dense=memory_layers * memory_dense_parameters(config) if memory_layers else 0,
        norms=(2 * model.layers + 1) * model.hidden
        + (memory_layers * memory_norm_parameters(config) if memory_layers else 0),
        experts=model.layers * model.experts * one_expert,
        active_experts=model.layers * model.experts_per_token * one_expert if model.experts else 0,
        tables=memory_layers * table_parameters(config.memory),
        embedding=embeddings * embedding_parameters(model),
    )


def attention_parameters(model: ModelConfig) -> int:
    """One block: query, key, value and output projection, no biases."""
    return 4 * model.hidden**2


def mlp_parameters(model: ModelConfig) -> int:
    """One dense block: two matrices, three when gated, no biases; nothing where experts take its place."""
    return 0 if model.experts else _mlp_matrices(model) * model.hidden * model.ffn_hidden


def router_parameters(model: ModelConfig) -> int:
    """One block: a row for each expert."""
    return model.experts * model.hidden


def expert_parameters(model: ModelConfig) -> int:
    """One expert."""
    return _mlp_matrices(model) * model.hidden * model.expert_ffn_hidden


def _mlp_matrices(model: ModelConfig) -> int:
    return 3 if model.gated_mlp else 2


def embedding_parameters(model: ModelConfig) -> int:
    """One embedding matrix, padded."""
    return model.padded_vocab_size * model.hidden


def table_parameters(memory: MemoryConfig) -> int:
    """The tables of one layer: N * Dv, and N * Dp of pre-values."""
    return memory.num_rows * (memory.value_dim + memory.pre_value_dim)


def memory_dense_parameters(config: RunConfig) -> int:
    """One memory layer without table and norms; these terms reproduce the dense column of the paper's Table 2.

    Query projection D x 2 Dk for each distinct query; row and column keys of each head; Tucker cores; depthwise
    convolution; projections E Dv -> D and D -> Dp, where there are any.
    """
    shape = memory_shape(config)
    query = shape.hidden * 2 * shape.query_width * shape.queries
    keys = shape.heads * 2 * shape.grid_side * shape.ranks * shape.rank_width
    core = shape.heads * shape.cores * shape.tucker_rank**2
    projection = shape.blocks * shape.value_dim * shape.hidden if shape.projected else 0
    return query + keys + core + shape.hidden * (shape.conv_kernel + shape.pre_value_dim) + projection


def memory_norm_parameters(config: RunConfig) -> int:
    """One memory layer: a norm for queries and one for keys, each for rows and columns alike."""
    return 2 * memory_shape(config).rank_width if config.memory.normalize_keys else 0

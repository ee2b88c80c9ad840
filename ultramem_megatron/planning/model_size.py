"""Parameter counts and forward FLOPs of a run, from its config alone."""

from dataclasses import dataclass

from ultramem_megatron.config.memory import MemoryConfig, VariantName
from ultramem_megatron.config.model import ModelConfig
from ultramem_megatron.config.run import RunConfig

FLOPS_PER_PARAMETER = 2  # one multiplication, one addition


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryShape:
    """Sizes of one memory layer as its variant uses them: ``pkm`` is the ladder's bottom rung whatever the other
    fields of the config say (no expansion, no Tucker core, one score, no query sharing, no norms, no convolution)."""

    expansion: int
    cores: int
    tucker_rank: int
    """0 without a Tucker core."""

    queries: int
    """Distinct queries of a token, each with a row and a column half."""

    grid_side: int
    """Row (= column) keys of a head."""

    norm_width: int
    """Width of the query norm and of the key norm; 0 without."""

    conv_kernel: int
    """Taps of the convolution before the query projection; 0 without."""


def memory_shape(memory: MemoryConfig) -> MemoryShape:
    """The sizes that ``memory.variant`` really has."""
    if memory.variant == VariantName.PKM:
        return MemoryShape(
            expansion=1,
            cores=1,
            tucker_rank=0,
            queries=memory.heads,
            grid_side=memory.keys_per_side,
            norm_width=0,
            conv_kernel=0,
        )
    return MemoryShape(
        expansion=memory.expansion,
        cores=memory.cores,
        tucker_rank=memory.tucker_rank,
        queries=memory.heads // memory.heads_per_query,
        grid_side=memory.grid_side,
        norm_width=memory.key_dim // memory.tucker_rank if memory.normalize_keys else 0,
        conv_kernel=memory.query_conv_kernel,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Parameters of the whole model, each counted once however many ranks hold it."""

    attention: int
    mlp: int
    norms: int
    memory_dense: int
    """Queries, keys, cores, norms, convolutions and projections of the memory layers."""

    experts: int
    tables: int
    embedding: int
    """Input and output embedding; one when they are tied."""

    @property
    def dense(self) -> int:
        """Everything that each token goes through, embeddings apart."""
        return self.attention + self.mlp + self.norms + self.memory_dense

    @property
    def total_without_embedding(self) -> int:
        """The paper's "Param" column."""
        return self.dense + self.experts + self.tables

    @property
    def flops_per_token(self) -> int:
        """Forward pass, the paper's "FLOPs" column: 2 x activated parameters without embeddings. Attention scores
        and the reading of table rows (additions, not a matrix product) are left out, as there."""
        return FLOPS_PER_PARAMETER * self.dense

    def to_dict(self) -> dict[str, int]:
        """The machine-readable summary."""
        names = ("dense", "experts", "tables", "embedding", "total_without_embedding")
        return {name: getattr(self, name) for name in names}


def count_parameters(config: RunConfig) -> ParameterCounts:
    """Count the parameters of ``config``."""
    model, memory = config.model, config.memory
    memory_layers = len(memory.span_list)
    embeddings = 1 if model.tie_embeddings else 2
    return ParameterCounts(
        attention=model.layers * attention_parameters(model),
        mlp=model.layers * mlp_parameters(model),
        norms=(2 * model.layers + 1) * model.hidden,
        memory_dense=memory_layers * memory_dense_parameters(config) if memory_layers else 0,
        experts=0,
        tables=memory_layers * table_parameters(memory),
        embedding=embeddings * embedding_parameters(model),
    )


def attention_parameters(model: ModelConfig) -> int:
    """One block: query, key, value and output projection, no biases."""
    return 4 * model.hidden**2


def mlp_parameters(model: ModelConfig) -> int:
    """One block: two matrices, three when gated, no biases."""
    return (3 if model.gated_mlp else 2) * model.hidden * model.ffn_hidden


def embedding_parameters(model: ModelConfig) -> int:
    """One embedding matrix, padded."""
    return model.padded_vocab_size * model.hidden


def table_parameters(memory: MemoryConfig) -> int:
    """One value table: N * Dv."""
    return memory.num_rows * memory.value_dim


def memory_dense_parameters(config: RunConfig) -> int:
    """One memory layer without its table; these terms reproduce the dense column of the paper's Table 2.

    Query projection D x 2 Dk for each distinct query; row and column keys of each head; Tucker cores; one query
    norm and one key norm; depthwise convolution; projection E Dv -> D, which PKM has only when Dv differs from D.
    """
    memory, hidden = config.memory, config.model.hidden
    shape = memory_shape(memory)
    query = hidden * 2 * memory.key_dim * shape.queries
    keys = memory.heads * 2 * shape.grid_side * memory.key_dim
    core = memory.heads * shape.cores * shape.tucker_rank**2
    projected = memory.variant != VariantName.PKM or memory.value_dim != hidden
    projection = shape.expansion * memory.value_dim * hidden if projected else 0
    return query + keys + core + 2 * shape.norm_width + hidden * shape.conv_kernel + projection

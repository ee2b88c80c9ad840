"""The dense Transformer beside the memory layers."""

from dataclasses import dataclass

from ultramem_megatron.config.check import require_divides, require_positive
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the GPT: pre-norm, RoPE, MLP without bias (paper section 4, Table 4)."""

    layers: int = 4
    """Transformer blocks L."""

    hidden: int = 128
    """Width D of the residual stream."""

    ffn_hidden: int = 512
    """Inner width of the MLP. The paper uses 4 D, not gated."""

    heads: int = 4
    """Attention heads."""

    seq_length: int = 256
    """Tokens in a sample."""

    vocab_size: int = 8192
    """Entries of the tokenizer; the embedding is padded to a multiple of 128."""

    gated_mlp: bool = False
    """SwiGLU instead of GeLU. The paper's models are not gated."""

    tie_embeddings: bool = False
    """Share the input embedding with the output layer."""

    norm_epsilon: float = 1e-5
    """Epsilon of every RMSNorm."""

    rope_base: int = 10_000
    """Base of the rotary position embedding."""

    init_std: float = 0.02
    """Standard deviation of dense weights; projections back into the residual stream get it / sqrt(2 L)."""

    embedding_init_std: float = 1.0
    """Standard deviation of the input embedding (of both, when tied: set it near ``init_std`` then). With 0.02 the
    residual stream starts small, the first norms multiply gradients by 50, and early steps spike (Takase et al.,
    "Spike No More", arXiv 2312.16903)."""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "ffn_hidden", "heads", "seq_length", "vocab_size"):
            require_positive(f"model.{name}", getattr(self, name))
        for name in ("norm_epsilon", "rope_base", "init_std"):
            require_positive(f"model.{name}", getattr(self, name))
        require_divides("model.heads", self.heads, "model.hidden", self.hidden)
        if self.hidden // self.heads % 2:
            raise ConfigError(
                f"model.hidden / model.heads = {self.hidden // self.heads} must be even, because RoPE turns "
                "pairs of channels; change model.heads"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: ``vocab_size`` rounded up to 128, the same in every layout."""
        return -(-self.vocab_size // 128) * 128

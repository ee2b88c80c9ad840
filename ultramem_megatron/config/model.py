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

    experts: int = 0
    """Experts of a mixture-of-experts MLP (megatron-core's) in each block; 0 for a dense MLP. The paper's baseline."""

    experts_per_token: int = 2
    """Experts that each token goes through."""

    expert_ffn_hidden: int = 0
    """Inner width of one expert; needed when there are experts, which then replace the dense MLP."""

    expert_balance_weight: float = 1e-2
    """Weight of the loss that spreads the tokens of a micro-batch over the experts (Switch Transformer, arXiv
    2101.03961)."""

    dropout: float = 0.0
    """Share of entries dropped from attention weights, block outputs and the input embedding. The paper trains with
    0.1 (Table 4)."""

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
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout = {self.dropout} must be 0 (none) or a share below 1")
        require_divides("model.heads", self.heads, "model.hidden", self.hidden)
        self._check_experts()
        if self.hidden // self.heads % 2:
            raise ConfigError(
                f"model.hidden / model.heads = {self.hidden // self.heads} must be even, because RoPE turns "
                "pairs of channels; change model.heads"
            )

    def _check_experts(self) -> None:
        if self.experts < 0:
            raise ConfigError(f"model.experts = {self.experts} must be 0 (a dense MLP) or a number of experts")
        if self.experts == 0:
            return
        require_positive("model.expert_ffn_hidden", self.expert_ffn_hidden)
        if not 1 <= self.experts_per_token <= self.experts:
            raise ConfigError(
                f"model.experts_per_token = {self.experts_per_token} must lie between 1 and model.experts = "
                f"{self.experts}"
            )
        if self.expert_balance_weight < 0:
            raise ConfigError(f"model.expert_balance_weight = {self.expert_balance_weight} must not be negative")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: ``vocab_size`` rounded up to 128, the same in every layout."""
        return -(-self.vocab_size // 128) * 128

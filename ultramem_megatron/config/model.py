"""The dense Transformer beside the memory layers."""

from dataclasses import dataclass
from typing import Annotated

from ultramem_megatron.config.check import Between, Share, Width, require_divides, require_positive, require_ranges
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the GPT: pre-norm, RoPE, MLP without bias (paper section 4, Table 4)."""

    layers: Annotated[int, Between(1, 4096)] = 4
    """Transformer blocks L."""

    hidden: Width = 128
    """Width D of the residual stream."""

    ffn_hidden: Width = 512
    """Inner width of the MLP. The paper uses 4 D, not gated."""

    heads: Annotated[int, Between(1, 4096)] = 4
    """Attention heads."""

    seq_length: Annotated[int, Between(1, 2**20)] = 256
    """Tokens in a sample."""

    vocab_size: Annotated[int, Between(1, 2**24)] = 8192
    """Entries of the tokenizer; the embedding is padded to a multiple of 128."""

    gated_mlp: bool = False
    """SwiGLU instead of GeLU. The paper's models are not gated."""

    experts: Annotated[int, Between(0, 4096, "a dense MLP")] = 0
    """Experts of a mixture-of-experts MLP (megatron-core's) in each block; 0 for a dense MLP. The paper's baseline."""

    experts_per_token: Annotated[int, Between(1, 4096)] = 2
    """Experts that each token goes through."""

    expert_ffn_hidden: Annotated[int, Between(0, 2**20, "without experts")] = 0
    """Inner width of one expert; needed when there are experts, which then replace the dense MLP."""

    expert_balance_weight: Annotated[float, Between(0, 1000)] = 1e-2
    """Weight of the loss that spreads the tokens of a micro-batch over the experts (Switch Transformer, arXiv
    2101.03961)."""

    dropout: Share = 0.0
    """Share of entries dropped from attention weights, block outputs and the input embedding. The paper trains with
    0.1 (Table 4)."""

    tie_embeddings: bool = False
    """Share the input embedding with the output layer."""

    norm_epsilon: Annotated[float, Between(1e-12, 0.1)] = 1e-5
    """Epsilon of every RMSNorm."""

    rope_base: Annotated[int, Between(1, 10**10)] = 10_000
    """Base of the rotary position embedding."""

    init_std: Annotated[float, Between(1e-6, 10)] = 0.02
    """Standard deviation of dense weights; projections back into the residual stream get it / sqrt(2 L)."""

    embedding_init_std: Annotated[float, Between(1e-6, 100)] = 1.0
    """Standard deviation of the input embedding (of both, when tied: set it near ``init_std`` then). With 0.02 the
    residual stream starts small, the first norms multiply gradients by 50, and early steps spike (Takase et al.,
    "Spike No More", arXiv 2312.16903)."""

    def __post_init__(self) -> None:
        require_ranges("model", self)
        if self.dropout == 1:
            raise ConfigError(f"model.dropout = {self.dropout} must be 0 (none) or a share below 1")
        require_divides("model.heads", self.heads, "model.hidden", self.hidden)
        self._check_experts()
        if self.hidden // self.heads % 2:
            raise ConfigError(
                f"model.hidden / model.heads = {self.hidden // self.heads} must be even, because RoPE turns "
                "pairs of channels; change model.heads"
            )

    def _check_experts(self) -> None:
        if self.experts == 0:
            return
        require_positive("model.expert_ffn_hidden", self.expert_ffn_hidden)
        if not 1 <= self.experts_per_token <= self.experts:
            raise ConfigError(
                f"model.experts_per_token = {self.experts_per_token} must lie between 1 and model.experts = "
                f"{self.experts}"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: ``vocab_size`` rounded up to 128, the same in every layout."""
        return -(-self.vocab_size // 128) * 128

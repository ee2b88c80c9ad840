"""RunConfig -> megatron-core's TransformerConfig. The only file that names its fields."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision, Recompute

DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}


def parameter_dtype(config: RunConfig) -> torch.dtype:
    """Type of weights and activations."""
    return DTYPES[config.training.precision]


def transformer_config(config: RunConfig) -> TransformerConfig:
    """The Transformer's settings."""
    model, parallelism = config.model, config.parallelism
    virtual = parallelism.virtual_pipeline if parallelism.virtual_pipeline > 1 else None
    dtype = parameter_dtype(config)
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn_hidden,
        num_attention_heads=model.heads,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.gated_mlp,
        activation_func=F.silu if model.gated_mlp else F.gelu,
        add_bias_linear=False,
        attention_dropout=model.dropout,
        hidden_dropout=model.dropout,
        tensor_model_parallel_size=parallelism.tensor,
        pipeline_model_parallel_size=parallelism.pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        sequence_parallel=parallelism.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=config.training.precision is Precision.BF16,
        deterministic_mode=config.training.deterministic,
        # weights are set from seed, name and global index afterwards (model/initial_weights.py); megatron-core still
        # runs its own initialisation, because that is where it marks parameters as split over tensor parallel
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        # fused paths of megatron-core that need Transformer Engine, Apex or CUDA
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        cross_entropy_loss_fusion=False,
        # scores of attention; whole blocks are recomputed by our own layer (model/layer_spec.py), without lookups
        recompute_granularity="selective" if config.training.recompute is Recompute.SELECTIVE else None,
        deallocate_pipeline_outputs=True,
        batch_p2p_comm=torch.cuda.is_available() and not _same_neighbour(config),
        **_expert_fields(config),
    )


def _expert_fields(config: RunConfig) -> dict[str, Any]:
    """Settings of a mixture of experts; none without."""
    model, tensor = config.model, config.parallelism.tensor
    if model.experts == 0:
        return {}
    return {
        "num_moe_experts": model.experts,
        "moe_ffn_hidden_size": model.expert_ffn_hidden,
        "expert_model_parallel_size": config.parallelism.expert,
        "moe_router_topk": model.experts_per_token,
        "moe_router_score_function": "softmax",
        # over the chosen experts; a single one would weigh 1 whatever the router says, so there over all
        "moe_router_pre_softmax": model.experts_per_token == 1,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": model.expert_balance_weight,
        # alltoall gathers unequal shares over tensor parallel, which gloo cannot
        "moe_token_dispatcher_type": "alltoall" if tensor == 1 or torch.cuda.is_available() else "allgather",
    }


def _same_neighbour(config: RunConfig) -> bool:
    """Whether a rank has one neighbour before and after it, and sends it activations and gradients at once.

    A batch of nccl's messages between two ranks pairs sends with receives by their order alone, and megatron-core
    puts them into it such that activations would be received as gradients; one by one they have a communicator for
    each direction.
    """
    return config.parallelism.pipeline == 2 and config.parallelism.virtual_pipeline > 1


def _leave(weight: Tensor) -> Tensor:
    return weight

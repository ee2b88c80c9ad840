"""DDP and the distributed optimizer around the model chunks."""

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import (
    ChainedOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision
from ultramem_megatron.optim.schedule import VALUE_RATE
from ultramem_megatron.parallel.groups import Groups


def wrap_in_ddp(
    chunks: list[nn.Module], transformer: TransformerConfig, groups: Groups
) -> list[DistributedDataParallel]:
    """Gradient buffers in fp32; value tables land in the expert buffers, reduced over ``mem_dp``, or else experts."""
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    return [
        DistributedDataParallel(transformer, ddp, chunk, disable_bucketing=index > 0, pg_collection=groups.gradients)
        for index, chunk in enumerate(chunks)
    ]


def build_optimizer(config: RunConfig, chunks: list[DistributedDataParallel], groups: Groups) -> ChainedOptimizer:
    """AdamW over fp32 master weights, its state sharded over the ranks that hold the same parameters."""
    settings = config.optimizer
    optimizer = OptimizerConfig(
        optimizer="adam",
        lr=settings.learning_rate,
        min_lr=settings.learning_rate * settings.min_learning_rate_fraction,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        clip_grad=settings.clip_gradient,
        bf16=config.training.precision is Precision.BF16,
        use_distributed_optimizer=True,
    )
    overrides = get_standard_config_overrides(optimizer)
    overrides[ParamKey(name="*memory.layers.*.table.weight")] = {VALUE_RATE: settings.value_lr_multiplier}
    return get_megatron_optimizer(
        optimizer, chunks, config_overrides=overrides, use_gloo_process_groups=False, pg_collection=groups.gradients
    )

"""DDP and the distributed optimizer around the model chunks."""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import (
    ChainedOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from ultramem_megatron.config.optimizer import MomentType, TableUpdate
from ultramem_megatron.config.optimizer import OptimizerConfig as SettingsOfOptimizer
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.config.training import Precision
from ultramem_megatron.optim.schedule import VALUE_RATE
from ultramem_megatron.optim.table_adamw import TableAdamW
from ultramem_megatron.parallel.groups import Groups

_DTYPES = {MomentType.FP32: torch.float32, MomentType.BF16: torch.bfloat16}


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
    built = get_megatron_optimizer(
        optimizer, chunks, config_overrides=overrides, use_gloo_process_groups=False, pg_collection=groups.gradients
    )
    for part in built.chained_optimizers:
        if not HAVE_APEX_OR_TE:
            _use_fused_kernel(part)
        # dense, with fp32 moments, theirs is a fused one as well
        if holds_tables(part) and (settings.own_table_step or not HAVE_APEX_OR_TE):
            _use_table_kernel(part, settings)
    return built


def holds_tables(part: DistributedOptimizer) -> bool:
    """Whether this is the optimizer of value tables; also on a rank whose pipeline stage has none."""
    return any(VALUE_RATE in group for group in part.optimizer.param_groups)


def _use_table_kernel(part: DistributedOptimizer, settings: SettingsOfOptimizer) -> None:
    """Put ``TableAdamW`` inside; it writes the model's weights, so that megatron-core need not copy them any more.

    Gradients are still cleared by megatron-core, a buffer at a time: it holds the ranges of other ranks as well.
    """
    weights = {}
    for parameter, (group, order) in part.model_param_group_index_map.items():
        master = part.optimizer.param_groups[group]["params"][order]
        held = part._get_model_param_range_map(parameter)["param"]
        weights[master] = parameter.detach().view(-1)[held.start : held.end]
    part.optimizer = TableAdamW(
        part.optimizer,
        weights,
        lazy=settings.table_update is TableUpdate.LAZY,
        moment_types=(_DTYPES[settings.table_exp_avg_dtype], _DTYPES[settings.table_exp_avg_sq_dtype]),
        step_in_group=HAVE_APEX_OR_TE,
    )
    part._copy_main_params_to_model_params = lambda: None


def _use_fused_kernel(part: DistributedOptimizer) -> None:
    """Let torch's AdamW update each parameter in one pass; else it allocates twice its size (on a GPU: of all).

    Checkpoints keep this with the group.
    """
    for group in part.optimizer.param_groups:
        group["fused"] = True

"""Processes, plan and config -> a run that is ready to step."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.model.build import build_model_chunks
from ultramem_megatron.model.transformer_config import transformer_config
from ultramem_megatron.optim.build import build_optimizer, wrap_in_ddp
from ultramem_megatron.optim.gradients import make_finalizer
from ultramem_megatron.optim.schedule import RateSchedule
from ultramem_megatron.parallel.groups import Groups, build_groups
from ultramem_megatron.parallel.stage_messages import StageMessages
from ultramem_megatron.planning.plan import Plan
from ultramem_megatron.planning.rank_grid import build_rank_grid
from ultramem_megatron.planning.stages import stages_of
from ultramem_megatron.training.state import TrainState


def build_run_groups(config: RunConfig, plan: Plan, device: torch.device) -> Groups:
    """The process groups that the plan asks for. Collective over the world."""
    grid = build_rank_grid(
        world_size=plan.world_size,
        tensor=config.parallelism.tensor,
        pipeline=config.parallelism.pipeline,
        memory_parallel_size=plan.memory_parallel_size,
        placement=plan.memory_placement,
        node_size=plan.node_size,
    )
    return build_groups(
        grid,
        expert=config.parallelism.expert,
        value_tables=bool(config.memory.span_list),
        virtual_pipeline=config.parallelism.virtual_pipeline,
        seed=config.training.seed,
        device=device,
    )


def build_train_state(config: RunConfig, plan: Plan, groups: Groups) -> TrainState:
    """Model, optimizer and schedule at step 0. Collective over the world."""
    transformer = transformer_config(config)
    chunks = build_model_chunks(config, plan, groups, transformer)
    _connect(transformer, config, groups)
    ddp = wrap_in_ddp(list(chunks), transformer, groups)
    optimizer = build_optimizer(config, ddp, groups)
    return TrainState(
        config=config,
        plan=plan,
        groups=groups,
        chunks=chunks,
        ddp=ddp,
        messages=_build_messages(config, groups, transformer),
        optimizer=optimizer,
        schedule=RateSchedule(optimizer, config.optimizer, config.training.steps),
    )


def _build_messages(config: RunConfig, groups: Groups, transformer: TransformerConfig) -> StageMessages:
    stages, share = stages_of(config), config.parallelism.tensor if config.parallelism.sequence else 1
    return StageMessages(
        groups.mcore.pp,
        transformer,
        stages=stages,
        crossed=stages.crossed(config.memory.span_list),
        hidden_shape=(config.model.seq_length // share, config.training.micro_batch_size, config.model.hidden),
    )


def _connect(transformer: TransformerConfig, config: RunConfig, groups: Groups) -> None:
    # the schedules read these hooks from the config
    transformer.finalize_model_grads_func = make_finalizer(sequence_parallel=config.parallelism.sequence, tp=groups.tp)

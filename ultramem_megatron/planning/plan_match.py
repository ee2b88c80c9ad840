"""What a plan depends on, and whether a saved one is of this run."""

from ultramem_megatron.config.memory import GroupPlacement, PartitionName, VariantName
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.plan import Plan, sha256_of

# What a plan depends on. Pins (memory.partition, parallel_size, placement, node_size) are compared with what was chosen
# instead: a plan made under a pin still serves a run without one.
_SUMMARY_FIELDS = {
    "model": (
        *("layers", "hidden", "ffn_hidden", "heads", "seq_length"),
        *("padded_vocab_size", "gated_mlp", "tie_embeddings", "experts", "experts_per_token", "expert_ffn_hidden"),
    ),
    "parallelism": ("tensor", "pipeline", "virtual_pipeline", "sequence", "expert"),
    "training": ("global_batch_size", "micro_batch_size", "precision", "recompute"),
}
_TABLE_OPTIMIZER_FIELDS = ("table_exp_avg_dtype", "table_exp_avg_sq_dtype")
_MEMORY_FIELDS = (
    *("spans", "keys_per_side", "top_m", "heads", "heads_per_query", "key_dim", "key_layout"),
    *("value_dim", "pre_value_dim", "tucker_rank", "cores", "expansion", "query_conv_kernel", "normalize_keys"),
)


def summarize_config(config: RunConfig) -> dict[str, int | str | bool]:
    """The settings a plan depends on. Those of the memory layers are absent from a dense model."""
    chosen = dict(_SUMMARY_FIELDS)
    if config.memory.variant != VariantName.NONE:
        chosen |= {"memory": _MEMORY_FIELDS, "optimizer": _TABLE_OPTIMIZER_FIELDS}
    summary: dict[str, int | str | bool] = {"memory.variant": str(config.memory.variant)}
    for section, names in chosen.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            summary[f"{section}.{name}"] = str(value) if isinstance(value, str) else value
    return summary


def check_plan_matches(plan: Plan, config: RunConfig, world_size: int) -> None:
    """Refuse a saved plan that is not of this run.

    Raises:
        PlanError: Made for another number of ranks or other sizes, or against a pin of ``config``.
    """
    again = "; plan again with `ultramem plan --save`"
    if plan.world_size != world_size:
        raise PlanError(f"the plan is for {plan.world_size} ranks, but the run has {world_size}{again}")
    summary = summarize_config(config)
    if plan.config_fingerprint != sha256_of(summary):
        keys = [key for key in {**plan.config_summary, **summary} if plan.config_summary.get(key) != summary.get(key)]
        differences = [f"{key} is {plan.config_summary.get(key)} there and {summary.get(key)} here" for key in keys]
        raise PlanError(f"the plan is of another run: {', '.join(differences[:4])}{again}")
    memory = config.memory
    if not plan.placements:
        return
    if memory.partition not in (PartitionName.AUTO, plan.partition):
        raise PlanError(
            f"the plan splits the tables {plan.partition}, but memory.partition = {memory.partition}{again}"
        )
    if memory.parallel_size not in ("auto", str(plan.memory_parallel_size)):
        raise PlanError(
            f"the plan shares a table over {plan.memory_parallel_size} ranks, but memory.parallel_size = "
            f"{memory.parallel_size}{again}"
        )
    if memory.placement not in (GroupPlacement.AUTO, plan.memory_placement):
        raise PlanError(
            f"the plan has the ranks of a table {plan.memory_placement}, but memory.placement = "
            f"{memory.placement}{again}"
        )
    if plan.node_size is not None and memory.node_size not in ("auto", str(plan.node_size)):
        raise PlanError(
            f"the plan splits the columns over nodes of {plan.node_size} ranks, but memory.node_size = "
            f"{memory.node_size}{again}"
        )

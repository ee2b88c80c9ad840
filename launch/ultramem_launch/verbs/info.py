"""``ultramem info``: what a config amounts to, before anything is built."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ultramem_megatron.config.run import RunConfig


def info(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Name of a recipe, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The numbers as a JSON object.")] = False,
) -> None:
    """Parameters, forward FLOPs per token and memory of a model, by component. Needs no GPU and no PyTorch.

    Example: ultramem info quickstart memory.keys_per_side=256
    """
    from ultramem_launch.configs import load_config

    facts = describe(load_config(config, overrides or []))
    print(json.dumps(facts, indent=2) if as_json else _text(facts))


def describe(config: "RunConfig") -> dict[str, Any]:
    """The numbers behind the verb. ``memory_bytes`` is of the whole model, every parameter counted once; how much
    of it one rank holds depends on the layout: ``ultramem plan``."""
    from ultramem_megatron.planning.comm_cost import BF16_BYTES, FP32_BYTES
    from ultramem_megatron.planning.memory_cost import ADAM_MOMENTS_BYTES, table_moments_bytes, weight_state_bytes
    from ultramem_megatron.planning.model_size import count_parameters

    counts = count_parameters(config)
    element_bytes = BF16_BYTES if config.training.precision == "bf16" else FP32_BYTES
    components = dict.fromkeys(("dense", "experts", "tables", "norms", "embedding"), ADAM_MOMENTS_BYTES)
    components["tables"] = table_moments_bytes(config.optimizer)
    memory_layers = len(config.memory.span_list)
    rows_per_token = memory_layers * config.memory.picks
    return {
        "parameters": counts.to_dict(),
        "dense_parameters": {name: getattr(counts, name) for name in ("attention", "mlp", "router", "memory_dense")},
        "flops_per_token": counts.flops_per_token,
        "memory_layers": memory_layers,
        "table_rows": config.memory.num_rows if memory_layers else 0,
        "rows_per_token": rows_per_token,
        "row_bytes_per_token": rows_per_token * (config.memory.value_dim + config.memory.pre_value_dim) * element_bytes,
        "precision": str(config.training.precision),
        "memory_bytes": {
            component: dict(
                zip(
                    ("weights", "gradients", "optimizer"),
                    map(round, weight_state_bytes(getattr(counts, component), element_bytes, 1, moments_bytes)),
                    strict=True,
                )
            )
            for component, moments_bytes in components.items()
        },
    }


def _text(facts: dict[str, Any]) -> str:
    from ultramem_megatron.units import format_bytes, format_count

    parameters, inside = facts["parameters"], facts["dense_parameters"]
    lines = ["parameters"]
    lines += [f"  {name.replace('_', ' '):<26}{format_count(count):>12}" for name, count in parameters.items()]
    parts = ", ".join(f"{name.replace('_', ' ')} {format_count(count)}" for name, count in inside.items() if count)
    lines += [f"  of dense: {parts}", ""]
    lines += [
        f"forward pass: {format_count(facts['flops_per_token'])}FLOP a token (attention scores not counted)",
        _memory_layers(facts),
        "",
        f"{'memory, ' + facts['precision']:<28}{'weights':>12}{'gradients':>12}{'optimizer':>12}",
    ]
    for component, state in facts["memory_bytes"].items():
        if not parameters[component]:
            continue
        lines.append(f"  {component:<26}" + "".join(f"{format_bytes(count):>12}" for count in state.values()))
    lines.append("  of the whole model, each parameter once; `ultramem plan CONFIG --explain` gives it for a rank")
    return "\n".join(lines)


def _memory_layers(facts: dict[str, Any]) -> str:
    from ultramem_megatron.units import format_bytes

    if not facts["memory_layers"]:
        return "memory layers: none"
    return (
        f"memory layers: {facts['memory_layers']}, tables of {facts['table_rows']:,} rows; a token reads "
        f"{facts['rows_per_token']} rows = {format_bytes(facts['row_bytes_per_token'])}"
    )

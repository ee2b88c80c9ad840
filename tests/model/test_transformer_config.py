"""The one file that names megatron-core's fields: what each is set to."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ultramem_megatron.config.load import parse_override, resolve
from ultramem_megatron.config.run import RunConfig

FIXED = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "cross_entropy_loss_fusion": False,
    "recompute_granularity": None,
    "deallocate_pipeline_outputs": True,
    "batch_p2p_comm": torch.cuda.is_available(),
}
FUNCTIONS = {"init_method", "output_layer_init_method", "embedding_init_method"}


def make_config(*overrides: str) -> RunConfig:
    return resolve([("defaults", {}), *map(parse_override, overrides)])


SPLIT = (
    *("model.layers=8", "model.hidden=96", "model.ffn_hidden=200", "model.heads=8", "model.norm_epsilon=1e-6"),
    *("model.gated_mlp=true", "model.dropout=0.1", "training.precision=bf16", "training.deterministic=true"),
    *("parallelism.tensor=4", "parallelism.pipeline=2", "parallelism.virtual_pipeline=2", "parallelism.sequence=true"),
)
DEFAULTS = {
    "num_layers": 4,
    "hidden_size": 128,
    "ffn_hidden_size": 512,
    "num_attention_heads": 4,
    "layernorm_epsilon": 1e-5,
    "gated_linear_unit": False,
    "activation_func": F.gelu,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "sequence_parallel": False,
    "params_dtype": torch.float32,
    "pipeline_dtype": torch.float32,
    "bf16": False,
    "deterministic_mode": False,
}
EXPECTED = [
    pytest.param(
        SPLIT,
        {
            "num_layers": 8,
            "hidden_size": 96,
            "ffn_hidden_size": 200,
            "num_attention_heads": 8,
            "layernorm_epsilon": 1e-6,
            "gated_linear_unit": True,
            "activation_func": F.silu,
            "attention_dropout": 0.1,
            "hidden_dropout": 0.1,
            "tensor_model_parallel_size": 4,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "sequence_parallel": True,
            "params_dtype": torch.bfloat16,
            "pipeline_dtype": torch.bfloat16,
            "bf16": True,
            "deterministic_mode": True,
            "batch_p2p_comm": False,
        },
        id="split",
    ),
    pytest.param(
        ("training.precision=fp32",),
        DEFAULTS,
        id="defaults",
    ),
    pytest.param(
        (
            *("training.precision=fp32", "parallelism.expert=2", "model.experts=6", "model.experts_per_token=3"),
            *("model.expert_ffn_hidden=40", "model.expert_balance_weight=0.5"),
        ),
        DEFAULTS
        | {
            "num_moe_experts": 6,
            "moe_ffn_hidden_size": 40,
            "expert_model_parallel_size": 2,
            "moe_router_topk": 3,
            "moe_router_score_function": "softmax",
            "moe_router_pre_softmax": False,
            "moe_router_dtype": "fp32",
            "moe_router_load_balancing_type": "aux_loss",
            "moe_aux_loss_coeff": 0.5,
            "moe_token_dispatcher_type": "alltoall",
        },
        id="experts",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), EXPECTED)
def test_these_fields_are_set_and_no_others(
    megatron: ModuleType, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], expected: dict[str, Any]
) -> None:
    from ultramem_megatron.model import transformer_config as module

    monkeypatch.setattr(module, "TransformerConfig", lambda **fields: fields)
    fields: Any = module.transformer_config(make_config(*overrides))
    assert {name for name in fields if name not in FUNCTIONS} == FIXED.keys() | expected.keys()
    assert {name: fields[name] for name in fields if name not in FUNCTIONS} == FIXED | expected
    weight = torch.ones(2)
    for name in FUNCTIONS:
        assert fields[name](weight) is weight and weight.eq(1).all(), "megatron-core's initialisation leaves weights"


@pytest.mark.parametrize(("overrides", "expected"), EXPECTED)
def test_megatron_keeps_what_it_is_given(
    megatron: ModuleType, overrides: tuple[str, ...], expected: dict[str, Any]
) -> None:
    from ultramem_megatron.model.transformer_config import transformer_config

    built = transformer_config(make_config(*overrides))
    for name, value in (FIXED | expected).items():
        assert getattr(built, name) == value, name


@pytest.mark.parametrize(("recompute", "granularity"), [("none", None), ("selective", "selective"), ("full", None)])
def test_megatron_recomputes_scores_alone(megatron: ModuleType, recompute: str, granularity: str | None) -> None:
    from ultramem_megatron.model.transformer_config import transformer_config

    built = transformer_config(make_config(f"training.recompute={recompute}"))
    assert built.recompute_granularity == granularity
    assert built.recompute_modules == ["core_attn"]


EXPERTS = ("model.experts=4", "model.expert_ffn_hidden=64", "parallelism.tensor=2")


def test_a_single_expert_is_weighed_against_all(megatron: ModuleType) -> None:
    from ultramem_megatron.model.transformer_config import transformer_config

    config = make_config(*EXPERTS, "parallelism.sequence=true", "model.experts_per_token=1")
    assert transformer_config(config).moe_router_pre_softmax is True


@pytest.mark.parametrize(("pipeline", "virtual", "batched"), [(2, 1, True), (2, 2, False), (4, 2, True)])
def test_gpus_batch_messages_but_of_two_ranks_that_are_neighbours_twice(
    megatron: ModuleType, monkeypatch: pytest.MonkeyPatch, pipeline: int, virtual: int, batched: bool
) -> None:
    from ultramem_megatron.model import transformer_config as module

    monkeypatch.setattr(module, "TransformerConfig", lambda **fields: fields)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    overrides = (f"parallelism.pipeline={pipeline}", f"parallelism.virtual_pipeline={virtual}", "model.layers=8")
    fields: Any = module.transformer_config(make_config(*overrides))
    assert fields["batch_p2p_comm"] is batched

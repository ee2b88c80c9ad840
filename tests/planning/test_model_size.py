"""Parameter counts against the published tables of the UltraMem papers (millions without embeddings and norms)."""

import dataclasses

import pytest

from ultramem_megatron.config.memory import KeyLayout, MemoryConfig, VariantName
from ultramem_megatron.config.model import ModelConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.model_size import (
    ParameterCounts,
    count_parameters,
    memory_dense_parameters,
    memory_norm_parameters,
)

MILLION = 1e6


def make_config(hidden: int, layers: int, **memory: object) -> RunConfig:
    model = ModelConfig(layers=layers, hidden=hidden, ffn_hidden=4 * hidden, heads=16)
    return RunConfig(model=model, memory=MemoryConfig(**memory))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hidden", "layers", "millions"),
    [(1024, 12, 150.995), (1536, 24, 679.477), (2048, 32, 1610.613), (4096, 32, 6442.451)],
)
def test_dense_models(hidden: int, layers: int, millions: float) -> None:
    counts = count_parameters(make_config(hidden, layers))
    assert counts.dense / MILLION == pytest.approx(millions, abs=0.001)
    assert counts.dense == counts.activated == counts.total_without_embedding == 12 * layers * hidden**2
    assert counts.norms == (2 * layers + 1) * hidden
    assert counts.flops_per_token == 2 * counts.dense
    assert counts.tables == counts.memory_dense == counts.experts == counts.active_experts == counts.router == 0


@pytest.mark.parametrize(
    ("hidden", "layers", "experts", "inner", "billions", "gigaflops"),
    [
        pytest.param(1024, 12, 32, 2528, 2.0388, 0.3492, id="151M-2in32"),
        pytest.param(1536, 24, 33, 3584, 8.9477, 1.5100, id="680M-2in33"),
        pytest.param(2048, 32, 34, 4672, 21.3596, 3.5232, id="1.6B-2in34"),
    ],
)
def test_mixtures_of_experts(
    hidden: int, layers: int, experts: int, inner: int, billions: float, gigaflops: float
) -> None:
    """L (4 D^2 + N 2 D i + N D) parameters; a token meets two of the N experts, and the whole router, which the paper's
    FLOPs leave out."""
    model = ModelConfig(
        layers=layers, hidden=hidden, ffn_hidden=4 * hidden, heads=16, experts=experts, expert_ffn_hidden=inner
    )
    counts = count_parameters(RunConfig(model=model))
    assert counts.total_without_embedding / 1e9 == pytest.approx(billions, abs=0.0001)
    assert counts.flops_per_token / 1e9 == pytest.approx(gigaflops, abs=0.0001)
    assert counts.mlp == 0, "experts replace it"
    assert counts.router == layers * experts * hidden
    assert counts.experts * 2 == counts.active_experts * experts
    assert counts.dense == layers * 4 * hidden**2 + counts.router
    assert counts.total_without_embedding == counts.dense + counts.experts


def test_gated_experts_have_a_third_matrix() -> None:
    plain = ModelConfig(experts=4, expert_ffn_hidden=96, experts_per_token=1)
    gated = dataclasses.replace(plain, gated_mlp=True)
    assert count_parameters(RunConfig(model=plain)).experts == 4 * 4 * 2 * 128 * 96
    assert count_parameters(RunConfig(model=gated)).experts == 4 * 4 * 3 * 128 * 96
    assert count_parameters(RunConfig(model=gated)).active_experts == 4 * 3 * 128 * 96


# --- The ladder of the paper's Table 2 --------------------------------------------------------------------------------

PKM = {
    "variant": VariantName.PKM,
    "spans": "6:6",
    "keys_per_side": 1224,
    "heads": 4,
    "heads_per_query": 1,
    "key_dim": 1224,  # heads x key_dim = 4,896
    "value_dim": 1024,
    "softmax": True,
    "expansion": 1,
    "query_conv_kernel": 0,
    "normalize_keys": False,
}
RUNGS: dict[str, dict[str, object]] = {
    "pkm-x10": {},
    "no-softmax": {"softmax": False},
    "half-value-dim": {"keys_per_side": 1728, "value_dim": 512},
    "share-query": {"heads_per_query": 2},
    "split-and-skip": {"spans": "3:5/6:8/9:11", "keys_per_side": 1000, "heads": 2, "key_dim": 500},
    "norms": {"normalize_keys": True},
    "expansion": {"expansion": 4},
    "tdqkr": {"variant": VariantName.ULTRAMEM, "tucker_rank": 2, "cores": 1},
    "mcs": {"cores": 2},
    "query-conv": {"query_conv_kernel": 5},
}


def rung(name: str) -> ParameterCounts:
    """The counts with the switches of ``name`` and of all rungs below it."""
    memory: dict[str, object] = dict(PKM)
    for step, changes in RUNGS.items():
        memory |= changes
        if step == name:
            break
    return count_parameters(make_config(1024, 12, **memory))


@pytest.mark.parametrize(
    ("name", "dense_millions", "table_billions", "megaflops"),
    [
        ("pkm-x10", 173.01, 1.534, 346.06),
        ("no-softmax", 173.01, 1.534, 346.06),
        ("half-value-dim", 178.47, 1.529, 356.98),
        ("share-query", 173.46, 1.529, 346.96),
        ("split-and-skip", 161.64, 1.536, 323.32),
        ("norms", 161.64, 1.536, 323.54),
        ("expansion", 172.37, 1.536, 344.98),
        ("tdqkr", 172.37, 1.536, 344.98),
        ("mcs", 172.37, 1.536, 344.98),
        ("query-conv", 172.38, 1.536, 345.02),
    ],
)
def test_each_rung_of_the_ablation(name: str, dense_millions: float, table_billions: float, megaflops: float) -> None:
    """P1 Table 2; its FLOPs hold some operations that are no matrix products, up to 0.3 M."""
    counts = rung(name)
    assert counts.dense / MILLION == pytest.approx(dense_millions, abs=0.02)
    assert counts.tables / 1e9 == pytest.approx(table_billions, abs=0.001)
    assert counts.flops_per_token / MILLION == pytest.approx(megaflops, abs=0.3)


def test_what_each_rung_adds() -> None:
    """To the parameter: a = H Dk, the formulas behind the table."""
    a, D = 4896, 1024
    dense = 12 * 12 * D**2
    assert rung("pkm-x10").dense == dense + 2 * a * D + 2 * 1224 * a
    assert rung("half-value-dim").dense == dense + 2 * a * D + 2 * 1728 * a + 512 * D
    assert rung("share-query").dense == rung("half-value-dim").dense - a * D
    assert rung("split-and-skip").dense == dense + 3 * (1000 * D + 2 * 1000 * 1000 + 512 * D)
    assert rung("split-and-skip").tables == 3 * 10**6 * 512
    assert rung("norms").dense == rung("split-and-skip").dense, "norms are counted apart"
    assert rung("norms").norms - rung("split-and-skip").norms == 3 * 2 * 500
    assert rung("expansion").dense - rung("norms").dense == 3 * (2 * 1000 * 1000 + 3 * 512 * D)
    assert rung("tdqkr").dense - rung("expansion").dense == 3 * 2 * 4, "layers x heads x r r: the keys are split"
    assert rung("tdqkr").norms - rung("split-and-skip").norms == 3 * 2 * 250, "a norm is as wide as a rank's key"
    assert rung("mcs").dense - rung("tdqkr").dense == 3 * 2 * 4
    assert rung("query-conv").dense - rung("mcs").dense == 3 * 5 * D
    flops = rung("expansion").flops_per_token - rung("norms").flops_per_token
    assert flops / MILLION == pytest.approx(21.44, abs=0.01)


# --- UltraMem as it was trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "layers", "spans", "keys_per_side", "key_dim", "top_m", "total_billions", "gigaflops"),
    [
        pytest.param(1024, 12, "3:5/6:8/9:11", 1100, 500, 16, 2.0321, 0.3471, id="151M-key-500"),
        pytest.param(1024, 12, "3:5/6:8/9:11", 1100, 512, 16, 2.0325, 0.3479, id="151M-key-512"),
        pytest.param(1024, 12, "3:5/6:8/9:11", 1100, 256, 16, 2.0242, 0.3312, id="151M-key-256"),
        pytest.param(1536, 24, "3:7/8:12/13:17/18:22", 1632, 750, 35, 8.9288, 1.4935, id="680M-key-750"),
        pytest.param(1536, 24, "3:7/8:12/13:17/18:22", 1632, 768, 35, 8.9299, 1.4958, id="680M-key-768"),
        pytest.param(2048, 32, "3:7/8:12/13:17/18:22/23:27/28:32", 1789, 800, 42, 21.413, 3.499, id="1.6B"),
        pytest.param(2048, 32, "3:7/8:12/13:17/18:22/23:27/28:32", 1788, 1024, 42, 21.416, 3.548, id="1.6B-key-1024"),
    ],
)
def test_ultramem_x12(
    hidden: int,
    layers: int,
    spans: str,
    keys_per_side: int,
    key_dim: int,
    top_m: int,
    total_billions: float,
    gigaflops: float,
) -> None:
    config = make_config(
        hidden,
        layers,
        variant=VariantName.ULTRAMEM,
        spans=spans,
        keys_per_side=keys_per_side,
        key_dim=key_dim,
        value_dim=hidden // 2,
        top_m=top_m,
    )
    counts = count_parameters(config)
    assert counts.total_without_embedding / 1e9 == pytest.approx(total_billions, rel=0.005)
    assert counts.flops_per_token / 1e9 == pytest.approx(gigaflops, rel=0.005)


# --- Key layouts, UltraMemV2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_key_layouts_by_hand(rank: int) -> None:
    """D 128, two heads with one query of 2 sides, 2 x 2 x 20 keys: split counts Dk once, full keys r times, a query
    per rank both r times."""
    common = {"variant": VariantName.ULTRAMEM, "spans": "1:2", "keys_per_side": 10, "top_m": 4, "value_dim": 48}
    others = 2 * 2 * rank**2 + 128 * 5 + 4 * 48 * 128
    for layout, query_copies, key_copies in (
        (KeyLayout.SPLIT, 1, 1),
        (KeyLayout.FULL, 1, rank),
        (KeyLayout.QUERY_PER_RANK, rank, rank),
    ):
        config = make_config(128, 4, **common, key_dim=60, tucker_rank=rank, key_layout=layout)
        expected = 128 * 2 * 60 * query_copies + 2 * 2 * 20 * 60 * key_copies + others
        assert memory_dense_parameters(config) == expected
        assert memory_norm_parameters(config) == 2 * (60 // rank if layout is KeyLayout.SPLIT else 60)


def test_one_small_layer_by_hand() -> None:
    """D 128, one span; queries 1 x 2 x 64, keys 2 heads x 2 x (2 x 10), cores 2 x 2 x 4; norms 2 x 32 beside."""
    config = make_config(128, 4, variant=VariantName.ULTRAMEM, spans="1:2", keys_per_side=10, top_m=4, value_dim=48)
    counts = count_parameters(config)
    assert counts.memory_dense == 128 * 128 + 2 * 2 * 20 * 64 + 16 + 128 * 5 + 4 * 48 * 128
    assert counts.norms == 9 * 128 + 64
    assert counts.tables == 100 * 48


@pytest.mark.parametrize(
    ("expansion", "value_dim", "projection"),
    [(1, 48, 48 * 128), (4, 48, 4 * 48 * 128), (4, 128, 4 * 128 * 128), (1, 128, 0)],
)
def test_one_vector_as_wide_as_the_model_is_not_projected(expansion: int, value_dim: int, projection: int) -> None:
    common = {"variant": VariantName.PKM, "spans": "1:2", "keys_per_side": 20, "expansion": expansion}
    counts = count_parameters(make_config(128, 4, **common, value_dim=value_dim, query_conv_kernel=0))
    side = 20 * (2 if expansion == 4 else 1)
    assert counts.memory_dense == 128 * 128 + 2 * 2 * side * 64 + projection


PUBLISHED_227M = ModelConfig(layers=20, hidden=768, ffn_hidden=2496, heads=12, gated_mlp=True)


def v2_227m(**changes: object) -> ParameterCounts:
    memory: dict[str, object] = {
        "variant": VariantName.ULTRAMEM_V2,
        "spans": "/".join(f"{block}:{block}" for block in range(1, 21)),
        "keys_per_side": 360,
        "top_m": 32,
        "heads": 1,
        "heads_per_query": 1,
        "key_dim": 192,
        "key_layout": KeyLayout.FULL,
        "value_dim": 192,
        "pre_value_dim": 192,
        "expansion": 1,
        "cores": 1,
        "query_conv_kernel": 0,
    }
    return count_parameters(RunConfig(model=PUBLISHED_227M, memory=MemoryConfig(**(memory | changes))))  # type: ignore[arg-type]


def test_ultramem_v2_227m() -> None:
    """P2 Table 10. With tables shared over layers, which the published run did, a layer has 1138 keys a side."""
    counts = v2_227m()
    assert counts.tables / MILLION == pytest.approx(995.328, abs=0.001)
    assert counts.attention / MILLION == pytest.approx(47.186, abs=0.001)
    assert counts.mlp / MILLION == pytest.approx(115.016, abs=0.001)
    assert counts.norms == 41 * 768 + 20 * 2 * 192


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        pytest.param({}, 29.276, id="one-query"),
        pytest.param({"key_layout": KeyLayout.QUERY_PER_RANK}, 35.174, id="query-per-rank"),
        pytest.param({"key_layout": KeyLayout.QUERY_PER_RANK, "expansion": 4}, 52.654, id="twice-the-keys"),
    ],
)
def test_dense_part_of_ultramem_v2_227m(changes: dict[str, object], millions: float) -> None:
    counts = v2_227m(keys_per_side=1138, **changes)
    assert counts.memory_dense / MILLION == pytest.approx(millions, abs=0.001)


def test_the_expansion_of_v2_costs_keys_but_no_projection() -> None:
    four, one = v2_227m(expansion=4), v2_227m()
    assert four.memory_dense - one.memory_dense == 20 * 2 * 360 * 2 * 192
    assert four.tables == one.tables


def test_pre_values_are_a_second_table_and_a_projection() -> None:
    wide, narrow = v2_227m(pre_value_dim=193), v2_227m()
    assert wide.tables - narrow.tables == 20 * 360**2
    assert wide.memory_dense - narrow.memory_dense == 20 * 768
    as_wide_as_the_model = v2_227m(value_dim=768)
    assert as_wide_as_the_model.memory_dense - narrow.memory_dense == 20 * 768 * (768 - 192), "always projected"


def test_ultramem_v2_1b_7b() -> None:
    model = ModelConfig(layers=16, hidden=2048, ffn_hidden=1024, heads=16)
    spans = "/".join(f"{block}:{block}" for block in range(1, 17))
    memory = MemoryConfig(
        variant=VariantName.ULTRAMEM_V2, spans=spans, keys_per_side=528, key_dim=512, value_dim=768, pre_value_dim=384
    )
    counts = count_parameters(RunConfig(model=model, memory=memory))
    assert counts.tables / 1e9 == pytest.approx(5.1385, abs=0.0001)


def test_ultramem_v1_227m_has_full_keys() -> None:
    """The published code gives each rank a full key and one query to all."""
    memory = MemoryConfig(
        variant=VariantName.ULTRAMEM,
        spans="3:6/7:10/11:14/15:18",
        keys_per_side=808,
        top_m=80,
        key_dim=192,
        key_layout=KeyLayout.FULL,
        value_dim=384,
        query_conv_kernel=0,
    )
    counts = count_parameters(RunConfig(model=dataclasses.replace(PUBLISHED_227M, ffn_hidden=2752), memory=memory))
    assert counts.tables / MILLION == pytest.approx(1002.80, abs=0.01)
    assert counts.memory_dense / MILLION == pytest.approx(15.83, abs=0.01)
    assert counts.mlp / MILLION == pytest.approx(126.81, abs=0.01)
    assert counts.total_without_embedding / 1e9 == pytest.approx(1.1926, abs=0.0001)


# --- The rest ---------------------------------------------------------------------------------------------------------


def test_a_dense_model_has_no_memory_whatever_its_section_says() -> None:
    """Fields of a memory that is not there have their ranges, and need not fit together."""
    idle = RunConfig(memory=MemoryConfig(tucker_rank=0, heads_per_query=3))
    assert count_parameters(idle) == count_parameters(RunConfig())


def test_embeddings_are_apart_and_once_when_tied() -> None:
    config = RunConfig(model=ModelConfig(vocab_size=1000, hidden=64, heads=4))
    tied = dataclasses.replace(config, model=dataclasses.replace(config.model, tie_embeddings=True))
    assert count_parameters(config).embedding == 2 * 1024 * 64
    assert count_parameters(tied).embedding == 1024 * 64
    assert count_parameters(tied).total_without_embedding == count_parameters(config).total_without_embedding


def test_a_gated_mlp_has_a_third_matrix() -> None:
    plain = RunConfig()
    gated = RunConfig(model=ModelConfig(gated_mlp=True))
    assert 2 * count_parameters(gated).mlp == 3 * count_parameters(plain).mlp


def test_summary_has_the_documented_keys() -> None:
    summary = rung("query-conv").to_dict()
    assert list(summary) == [
        "dense",
        "experts",
        "tables",
        "norms",
        "embedding",
        "total_without_embedding",
        "activated",
    ]
    assert summary["total_without_embedding"] == summary["dense"] + summary["tables"]
    assert summary["activated"] == summary["dense"], "rows are read, not multiplied"

"""Parameter counts against the published tables of the UltraMem paper (millions without embeddings)."""

import dataclasses

import pytest

from ultramem_megatron.config.memory import MemoryConfig, VariantName
from ultramem_megatron.config.model import ModelConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.planning.model_size import ParameterCounts, count_parameters

MILLION = 1e6


def make_config(hidden: int, layers: int, **memory: object) -> RunConfig:
    model = ModelConfig(layers=layers, hidden=hidden, ffn_hidden=4 * hidden, heads=16)
    return RunConfig(model=model, memory=MemoryConfig(**memory))  # type: ignore[arg-type]


def without_norms(counts: ParameterCounts) -> int:
    """The paper's arithmetic leaves the norms of the blocks out."""
    return counts.dense - counts.norms


@pytest.mark.parametrize(
    ("hidden", "layers", "millions"),
    [(1024, 12, 150.995), (1536, 24, 679.477), (2048, 32, 1610.613), (4096, 32, 6442.451)],
)
def test_dense_models(hidden: int, layers: int, millions: float) -> None:
    counts = count_parameters(make_config(hidden, layers))
    assert without_norms(counts) / MILLION == pytest.approx(millions, abs=0.001)
    assert counts.norms == (2 * layers + 1) * hidden
    assert counts.flops_per_token == 2 * counts.dense
    assert counts.tables == counts.memory_dense == counts.experts == 0


@pytest.mark.parametrize(
    ("keys_per_side", "value_dim", "dense_millions", "table_billions"),
    [
        pytest.param(1224, 1024, 173.007, 1.53413, id="pkm-x10"),
        pytest.param(1728, 512, 178.467, 1.52882, id="half-value-dim"),
    ],
)
def test_pkm_rows(keys_per_side: int, value_dim: int, dense_millions: float, table_billions: float) -> None:
    """4,896 is heads x key_dim. The fields that PKM has no use for stay at their defaults and change nothing."""
    counts = count_parameters(
        make_config(
            1024,
            12,
            variant=VariantName.PKM,
            spans="6:6",
            keys_per_side=keys_per_side,
            heads=4,
            key_dim=1224,
            value_dim=value_dim,
        )
    )
    assert without_norms(counts) / MILLION == pytest.approx(dense_millions, abs=0.001)
    assert counts.tables / 1e9 == pytest.approx(table_billions, abs=0.00001)


def rung(**changes: object) -> ParameterCounts:
    settings: dict[str, object] = {
        "variant": VariantName.ULTRAMEM,
        "spans": "3:5/6:8/9:11",
        "keys_per_side": 1000,
        "key_dim": 500,
        "value_dim": 512,
        "expansion": 1,
        "tucker_rank": 1,
        "cores": 1,
        "query_conv_kernel": 0,
        "normalize_keys": False,
    }
    return count_parameters(make_config(1024, 12, **(settings | changes)))


def test_ladder_of_the_ablation() -> None:
    split = rung()
    assert without_norms(split) / MILLION == pytest.approx(161.640, abs=0.001)
    assert split.tables == 3 * 10**6 * 512
    expanded = rung(expansion=4)
    assert without_norms(expanded) / MILLION == pytest.approx(172.358, abs=0.001)
    assert (expanded.flops_per_token - split.flops_per_token) / MILLION == pytest.approx(21.44, abs=0.01)
    with_cores = rung(expansion=4, tucker_rank=2, cores=2)
    assert with_cores.dense - expanded.dense == 3 * 2 * (2 * 2 * 2 - 1), "layers x heads x (h r r - 1)"
    assert rung(expansion=4, normalize_keys=True).dense / MILLION == pytest.approx(172.37, abs=0.02)


def test_shared_queries_of_the_ablation() -> None:
    """One layer of n = 1728, H Dk = 4896, two heads a query: 173.453 M."""
    counts = rung(spans="6:6", keys_per_side=1728, heads=4, key_dim=1224)
    assert without_norms(counts) / MILLION == pytest.approx(173.453, abs=0.001)


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


def test_one_small_layer_by_hand() -> None:
    """D 128, one span; queries 1 x 2 x 64, keys 2 heads x 2 x (2 x 10), cores 2 x 2 x 4, norms 2 x 32."""
    config = make_config(128, 4, variant=VariantName.ULTRAMEM, spans="1:2", keys_per_side=10, top_m=4, value_dim=48)
    memory_dense = 128 * 128 + 2 * 2 * 20 * 64 + 16 + 64 + 128 * 5 + 4 * 48 * 128
    assert count_parameters(config).memory_dense == memory_dense
    assert count_parameters(config).tables == 100 * 48


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
    summary = rung().to_dict()
    assert list(summary) == ["dense", "experts", "tables", "embedding", "total_without_embedding"]
    assert summary["total_without_embedding"] == summary["dense"] + summary["tables"]

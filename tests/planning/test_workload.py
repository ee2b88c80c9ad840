"""What a rank does in a step, and where the tables sit in the pipeline."""

import pytest

from ultramem_megatron.config.load import resolve
from ultramem_megatron.errors import ConfigError
from ultramem_megatron.planning.workload import workload_of

MEMORY = {"variant": "ultramem", "spans": "1:1/2:2/5:6"}


def test_tokens_and_micro_batches_of_a_rank() -> None:
    """8 ranks = tensor 2 x data 2 x pipeline 2; 16 samples a step, 4 at a time on each of 2 data ranks."""
    config = resolve(
        [
            (
                "test",
                {
                    "model": {"layers": 8, "seq_length": 64},
                    "memory": MEMORY,
                    "parallelism": {"tensor": 2, "pipeline": 2},
                    "training": {"global_batch_size": 16, "micro_batch_size": 4, "precision": "bf16"},
                },
            )
        ]
    )
    workload = workload_of(config, 8)
    assert (workload.data_ranks, workload.stage_ranks, workload.micro_batches) == (2, 4, 2)
    assert workload.micro_batch_tokens == 256
    assert workload.lookup.tokens == 128
    assert (workload.lookup.picks, workload.lookup.expansion, workload.lookup.cores) == (32, 4, 2)
    assert workload.element_bytes == 2
    assert workload.tables_of_stage == (2, 1)
    assert workload.busiest_stage_tables == 2


def test_virtual_stages_are_dealt_in_turn() -> None:
    """Chunks of 2 blocks go to stages 0, 1, 0, 1: block 5 is back on stage 0."""
    config = resolve(
        [
            (
                "test",
                {
                    "model": {"layers": 8},
                    "memory": MEMORY,
                    "parallelism": {"pipeline": 2, "virtual_pipeline": 2},
                },
            )
        ]
    )
    assert workload_of(config, 2).tables_of_stage == (3, 0)


PENDING = [
    # results and gradients that a rank of each stage sends, in hidden states
    ("1:2/3:4", {"pipeline": 2}, (0, 0)),
    ("2:3", {"pipeline": 2}, (1, 1)),
    ("1:2/3:4", {"pipeline": 4}, (1, 1, 1, 1)),
    ("1:4", {"pipeline": 4}, (1, 2, 2, 1)),
    ("2:3", {"pipeline": 2, "virtual_pipeline": 2}, (1, 1)),
    ("1:4", {"pipeline": 2, "virtual_pipeline": 2}, (3, 3)),
    ("2:3", {"pipeline": 2, "tensor": 2}, (1, 1)),
    ("2:3", {"pipeline": 2, "tensor": 2, "sequence": True}, (0.5, 0.5)),
]


@pytest.mark.parametrize(("spans", "parallelism", "messages"), PENDING)
def test_what_spans_across_stages_send(spans: str, parallelism: dict[str, int], messages: tuple[float, ...]) -> None:
    settings = {
        "model": {"layers": 4, "hidden": 64, "seq_length": 32},
        "memory": {"variant": "ultramem", "spans": spans},
        "parallelism": parallelism,
        "training": {"global_batch_size": 8, "micro_batch_size": 2, "precision": "bf16"},
    }
    workload = workload_of(resolve([("test", settings)]), 4)
    assert workload.pending_bytes == tuple(count * 2 * 32 * 64 * 2 for count in messages)


@pytest.mark.parametrize("expansion", [1, 4])
def test_pkm_has_one_score_and_may_be_expanded(expansion: int) -> None:
    memory = {"variant": "pkm", "spans": "1:1", "expansion": expansion}
    lookup = workload_of(resolve([("test", {"memory": memory, "training": {"precision": "fp32"}})]), 1).lookup
    assert (lookup.expansion, lookup.cores, lookup.element_bytes) == (expansion, 1, 4)


def test_ultramem_v2_pools_all_blocks_into_one_vector() -> None:
    memory = {"variant": "ultramem_v2", "spans": "1:1", "expansion": 4, "pre_value_dim": 24}
    lookup = workload_of(resolve([("test", {"memory": memory})]), 1).lookup
    assert (lookup.expansion, lookup.cores, lookup.pre_value_dim) == (1, 2, 24)


def test_only_ultramem_v2_has_pre_values() -> None:
    lookup = workload_of(resolve([("test", {"memory": MEMORY, "model": {"layers": 8}})]), 1).lookup
    assert (lookup.expansion, lookup.pre_value_dim) == (4, 0)


def test_ranks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.global_batch_size = 16 must be a multiple"):
        workload_of(resolve([]), 3)

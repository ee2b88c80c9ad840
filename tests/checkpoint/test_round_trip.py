"""A real save and load: every number of weights and optimizer comes back, under the same layout and under another."""

import dataclasses
import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA"),
]

SAVED_STEP = 2

DATA = SyntheticTokens(seq_length=32, vocab_size=256, seed=1)


NUMBER_WISE = ("memory.partition=number_wise", "memory.parallel_size=2")
DIMENSION_WISE = ("memory.partition=dimension_wise", "memory.parallel_size=2")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a rank reports of a run."""

    local: str
    """Digest of this rank's own tensors, weights and optimizer."""
    logical: dict[str, str]
    """Digest of each logical tensor, put together from all ranks."""
    steps: list[tuple[float, float]]
    """Loss and gradient norm of the steps taken after the save or load."""


def train_and_save(config: RunConfig, root: Path) -> Seen:
    from ultramem_megatron.training.checkpointing import SaveCheckpoints

    state, batches = build(config)
    saves = SaveCheckpoints(root, DATA.identity, state)
    take_steps(state, batches, SAVED_STEP)
    saves.on_exit(state)
    assert psutil.Process().children() == [], "a process left behind by a save would outlive a rank that is killed"
    return report(state, batches)


def load(config: RunConfig, root: Path) -> Seen:
    from ultramem_megatron.training.checkpointing import find_start, resume

    state, batches = build(config)
    start = find_start(config, root)
    assert start is not None
    resume(state, start, root, DATA)
    assert state.step == SAVED_STEP
    batches.consumed_samples = state.consumed_samples
    return report(state, batches)


def build(config: RunConfig) -> tuple[Any, Any]:
    from ultramem_megatron.data.batch import BatchSampler
    from ultramem_megatron.data.dataset import open_training_data
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.setup import build_run_groups, build_train_state

    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    groups = build_run_groups(config, plan, torch.device("cpu"))
    state = build_train_state(config, plan, groups)
    sizes = {"global_batch_size": 4, "micro_batch_size": 2}
    source = open_training_data(
        dataclasses.replace(config, training=tiny_config().training)
    )  # whatever the seed of weights
    return state, BatchSampler(source, **sizes, dp_rank=groups.data_rank, dp_size=groups.data_ranks)


def take_steps(state: Any, batches: Any, count: int) -> list[tuple[float, float]]:
    from ultramem_megatron.training.step import train_step

    results = [train_step(state, batch) for _, batch in zip(range(count), batches, strict=False)]
    return [(result.loss, result.gradient_norm) for result in results]


def report(state: Any, batches: Any) -> Seen:
    pieces = own_pieces(state)
    local = digest(*(tensor for _, _, _, tensor in pieces))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, pieces)
    logical = put_together([piece for rank in gathered for piece in rank])
    return Seen(local, logical, take_steps(state, batches, 2))


Piece = tuple[str, tuple[int, ...], tuple[int, ...], torch.Tensor]


def own_pieces(state: Any) -> list[Piece]:
    """Every sharded tensor of this rank, weights and optimizer."""
    from ultramem_megatron.checkpoint.content import sharded_state

    return pieces_of(sharded_state(state.ddp, state.optimizer, loading=False))


def pieces_of(described: dict[str, Any]) -> list[Piece]:
    """(key, shape of the logical tensor, offset in it, data) of what dist_checkpointing would save."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    apply_factories(described)
    return [
        (value.key, tuple(value.global_shape), tuple(value.global_offset), value.data.detach().clone())
        for value in nested_values(described)
        if isinstance(value, ShardedTensor)
    ]


def put_together(pieces: list[Piece]) -> dict[str, str]:
    whole: dict[str, torch.Tensor] = {}
    for key, shape, offset, data in pieces:
        tensor = whole.setdefault(key, torch.full(shape, torch.nan))
        # a tensor whose shards are stacked along axes of their own has more dimensions than its data
        data = data.reshape((1,) * (len(shape) - data.dim()) + tuple(data.shape))
        tensor[tuple(slice(start, start + size) for start, size in zip(offset, data.shape, strict=True))] = data
    assert not any(tensor.isnan().any() for tensor in whole.values()), "a piece of a logical tensor is nowhere"
    return {key: digest(tensor) for key, tensor in sorted(whole.items())}


def digest(*tensors: torch.Tensor) -> str:
    joined = hashlib.sha256()
    for tensor in tensors:
        joined.update(tensor.contiguous().numpy().tobytes())
    return joined.hexdigest()


@pytest.fixture(scope="module")
def saved(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """A checkpoint of step 2, written by two ranks with the table split by rows."""
    import_module_before_the_fork()
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    return root, run_distributed(2, train_and_save, tiny_config(*NUMBER_WISE), root)


def import_module_before_the_fork() -> None:
    import ultramem_megatron.training.checkpointing
    import ultramem_megatron.training.setup
    import ultramem_megatron.training.step  # noqa: F401


def test_the_same_layout_goes_on_bit_by_bit(saved: tuple[Path, list[Seen]]) -> None:
    root, before = saved
    after = run_distributed(2, load, tiny_config(*NUMBER_WISE, "training.seed=99"), root)
    assert [seen.local for seen in after] == [seen.local for seen in before]
    assert after[0].logical == before[0].logical
    assert after[0].steps == before[0].steps
    assert any("exp_avg_sq" in key and "table" in key for key in before[0].logical)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [(2, DIMENSION_WISE), (1, ()), (2, ("parallelism.tensor=2", *DIMENSION_WISE))],
    ids=["dimension-wise", "one process", "tensor parallel"],
)
def test_another_layout_holds_the_same_numbers(
    saved: tuple[Path, list[Seen]], ranks: int, overrides: tuple[str, ...]
) -> None:
    root, before = saved
    after = run_distributed(ranks, load, tiny_config(*overrides, "training.seed=99"), root)
    assert after[0].logical == before[0].logical
    torch.testing.assert_close(torch.tensor(after[0].steps), torch.tensor(before[0].steps), rtol=1e-5, atol=0)


def test_weights_alone(saved: tuple[Path, list[Seen]]) -> None:
    root, before = saved
    (weights,) = run_distributed(1, load_weights_alone, tiny_config("training.seed=99"), root)
    assert weights
    assert {key: before[0].logical[key] for key in weights} == weights


def load_weights_alone(config: RunConfig, root: Path) -> dict[str, str]:
    from ultramem_megatron.checkpoint.content import weights_state
    from ultramem_megatron.checkpoint.load import load_weights
    from ultramem_megatron.checkpoint.store import find_newest

    state, _ = build(config)
    found = find_newest(root)
    assert found is not None
    load_weights(*found, state.chunks)
    return put_together(pieces_of(weights_state(state.chunks)))


def test_what_the_manifest_says(saved: tuple[Path, list[Seen]]) -> None:
    from ultramem_megatron.checkpoint.manifest import read_manifest

    root, _ = saved
    manifest = read_manifest(root / f"step_{SAVED_STEP:08d}")
    assert (manifest.step, manifest.consumed_samples, manifest.consumed_tokens) == (2, 8, 8 * 32)
    assert manifest.world_size == 2
    assert manifest.plan["memory_parallel_size"] == 2
    assert manifest.config["memory"]["partition"] == "number_wise"
    assert {"torch", "megatron-core"} <= set(manifest.versions)
    written = [sum(size for name, size in manifest.files.items() if name.startswith(f"__{rank}_")) for rank in range(2)]
    assert min(written) > 0.8 * max(written), "ranks share what all of them hold"

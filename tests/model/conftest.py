"""Small models on forked ranks, and their weights put together from the shards of all ranks."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.load import parse_override, resolve
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.testing.distributed import run_distributed

SECTIONS = {
    "model": {"layers": 4, "hidden": 16, "ffn_hidden": 32, "heads": 2, "seq_length": 8, "vocab_size": 100},
    "memory": {
        "variant": "ultramem",
        "spans": "2:2/3:3",
        "keys_per_side": 5,
        "top_m": 3,
        "heads": 2,
        "key_dim": 8,
        "value_dim": 8,
    },
    "training": {"global_batch_size": 8, "micro_batch_size": 1, "precision": "fp32"},
}


@dataclass(frozen=True)
class Piece:
    """One rank's part of a logical tensor."""

    key: str
    whole_shape: tuple[int, ...]
    place: tuple[slice | int, ...]
    values: Tensor


@dataclass(frozen=True)
class Models:
    """Configs, models on the ranks that exist (inside ``run_distributed``), and whole weights."""

    @staticmethod
    def config(*overrides: str) -> RunConfig:
        """The small model, changed by ``key=value`` overrides."""
        return resolve([("base", SECTIONS), *map(parse_override, overrides)])

    @staticmethod
    def build(config: RunConfig) -> list[Any]:
        """This rank's chunks, as a run builds them."""
        from ultramem_megatron.model.build import build_model_chunks
        from ultramem_megatron.model.transformer_config import transformer_config
        from ultramem_megatron.planning.choose import choose_plan
        from ultramem_megatron.planning.cluster import local_cluster
        from ultramem_megatron.training.setup import build_run_groups

        plan = choose_plan(config, local_cluster(dist.get_world_size()))
        groups = build_run_groups(config, plan, torch.device("cpu"))
        return list(build_model_chunks(config, plan, groups, transformer_config(config)))

    def pieces(self, config: RunConfig) -> list[Piece]:
        """Every parameter of this rank with its place in the whole, by the checkpoint's account."""
        from megatron.core.dist_checkpointing.dict_utils import nested_values
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

        pieces = []
        for chunk in self.build(config):
            owned = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
            state = chunk.sharded_state_dict()
            apply_factories(state)
            for tensor in nested_values(state):
                if isinstance(tensor, ShardedTensor) and tensor.data.untyped_storage().data_ptr() in owned:
                    pieces.append(_piece(tensor))
        return pieces

    def whole_weights(self, ranks: int, config: RunConfig) -> dict[str, Tensor]:
        """Every parameter of the model, by the checkpoint's names, from the shards of ``ranks`` ranks.

        Where several ranks hold the same part they must hold the same values; a part that nobody holds is an error.
        """
        whole: dict[str, Tensor] = {}
        for piece in (piece for of_rank in run_distributed(ranks, self.pieces, config) for piece in of_rank):
            tensor = whole.setdefault(piece.key, torch.full(piece.whole_shape, torch.nan))
            target = tensor[piece.place]
            known = ~target.isnan()
            assert torch.equal(target[known], piece.values[known]), f"copies of {piece.key} differ"
            tensor[piece.place] = piece.values
        for key, tensor in whole.items():
            assert not tensor.isnan().any(), f"nobody holds all of {key}"
        return whole


def _piece(tensor: Any) -> Piece:
    ahead = tensor.prepend_axis_num
    place = (
        *tensor.global_offset[:ahead],
        *(slice(o, o + n) for o, n in zip(tensor.global_offset[ahead:], tensor.local_shape, strict=True)),
    )
    return Piece(tensor.key, tuple(tensor.global_shape), place, tensor.data.detach().float().clone())


@pytest.fixture(scope="session")
def models(megatron: ModuleType) -> Models:
    """Builders of models; megatron-core is imported."""
    return Models()

"""One process on one GPU: the whole world, over nccl. Nothing is forked or spawned, and no CPU seam is loaded."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[torch.device]:
    """The device, with ``dist.group.WORLD`` of this process alone."""
    from ultramem_megatron.parallel.process import ProcessPlace, start_process

    meeting = tmp_path_factory.mktemp("rendezvous") / "store"
    place = ProcessPlace(rank=0, world_size=1, local_rank=0, local_world_size=1, rendezvous=f"file://{meeting}")
    found = start_process(place, timeout_seconds=60)
    from ultramem_megatron.parallel.groups import destroy_groups

    yield found
    destroy_groups()

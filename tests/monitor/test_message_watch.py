"""Every collective of every partition is measured under the name that the planner has for it, to the byte."""

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.metrics.metric import Reading, Recorder
from ultramem_megatron.monitor.message_watch import MessageWatch
from ultramem_megatron.parallel.partition.base import Picks, TableShape
from ultramem_megatron.planning.comm_cost import LookupShape, partition_bytes
from ultramem_megatron.planning.plan import PredictedMessage
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.partition_runs import build

TOKENS, PICKS, VALUE_DIM = 3, 2, 4
RANKS = {PartitionName.GRID: 4}


def measure(name: PartitionName) -> tuple[dict[str, Reading], float]:
    """Two micro-batches of a layer with pre-values: what was recorded, and the bytes that its channels counted."""
    from ultramem_megatron.memory.value_table import ValueTable

    world = dist.group.WORLD
    assert world is not None
    torch.manual_seed(world.rank())
    tables = []
    for _ in range(2):
        partition = build(name, TableShape(num_rows=8, value_dim=VALUE_DIM, blocks=2))
        tables.append(ValueTable(partition, world, torch.float32, torch.device("cpu")))
    recorder = Recorder(enabled=True)
    watch = MessageWatch(tables, "layer0", recorder, {"forward.rows": PredictedMessage(num_bytes=7, seconds=0.5)})
    watch.begin()
    tokens = [TOKENS] * world.size()
    for _ in range(2):
        rows = torch.randint(8, (TOKENS, PICKS), dtype=torch.int32)
        vectors = torch.ones(TOKENS, VALUE_DIM, requires_grad=True)
        products_TK = tables[1].partition.inner_products(tables[1].weight, rows, vectors, tokens)
        picks = Picks(rows, torch.randint(2, rows.shape).to(torch.uint8), products_TK.unsqueeze(0))
        tables[0].partition(tables[0].weight, picks, tokens).sum().backward()
    watch.report(micro_batches=2)
    traffic = [table.partition.channel.traffic for table in tables]
    return recorder.drain(), sum(one.forward_bytes + one.backward_bytes for one in traffic)


@pytest.mark.parametrize("name", [name for name in PartitionName if name is not PartitionName.AUTO])
def test_names_and_bytes_are_those_of_the_planner(name: PartitionName) -> None:
    ranks = RANKS.get(name, 1 if name is PartitionName.REPLICATED else 2)
    shape = LookupShape(
        tokens=TOKENS,
        picks=PICKS,
        num_rows=8,
        value_dim=VALUE_DIM,
        pre_value_dim=VALUE_DIM,
        element_bytes=4,
        expansion=2,
    )
    breakdown = partition_bytes(name, shape, ranks, node_size=2).breakdown
    planned = {key for key, count in breakdown.items() if count}
    for readings, sent_bytes in run_distributed(ranks, measure, name):
        prefix = "communication/message_bytes/layer0/"
        found = {key.removeprefix(prefix): one.value for key, one in readings.items() if key.startswith(prefix)}
        assert set(found) == planned
        assert 2 * sum(found.values()) == sent_bytes
        for message in planned:
            seconds = readings[f"communication/message_seconds/layer0/{message}"].value
            exposed = readings[f"communication/message_exposed_seconds/layer0/{message}"].value
            assert 0 <= exposed <= seconds < 60
        assert readings["communication/predicted_message_seconds/layer0/forward.rows"].value == 0.5

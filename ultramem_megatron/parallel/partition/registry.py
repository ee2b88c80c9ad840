"""Every partition, by the name that config and plan use."""

from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.parallel.partition.base import ValuePartition
from ultramem_megatron.parallel.partition.dimension_wise import DimensionWise
from ultramem_megatron.parallel.partition.grid import Grid
from ultramem_megatron.parallel.partition.number_wise import NumberWise
from ultramem_megatron.parallel.partition.number_wise_pooled import NumberWisePooled
from ultramem_megatron.parallel.partition.replicated import Replicated

PARTITIONS: dict[PartitionName, type[ValuePartition]] = {
    PartitionName.REPLICATED: Replicated,
    PartitionName.NUMBER_WISE: NumberWise,
    PartitionName.NUMBER_WISE_POOLED: NumberWisePooled,
    PartitionName.DIMENSION_WISE: DimensionWise,
    PartitionName.GRID: Grid,
}

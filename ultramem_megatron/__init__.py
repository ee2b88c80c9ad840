"""Pretraining with ultra-sparse memory layers (UltraMem, arXiv 2411.12364) on megatron-core."""

from ultramem_megatron import mcore_finder

__version__ = "0.1.0"

mcore_finder.install()

"""Pretraining with ultra-sparse memory layers (UltraMem, arXiv 2411.12364) on megatron-core."""

__version__ = "0.1.0"

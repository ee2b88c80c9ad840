"""Kernels of the memory layer: torch on CPUs, Triton on CUDA devices. Knows nothing of the framework around them."""

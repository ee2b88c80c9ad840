"""Kernels of the memory layer. Knows torch (and, later, triton), and nothing of the framework."""

"""Timings of collectives, kernels and whole lookups, by all ranks of a group at once."""

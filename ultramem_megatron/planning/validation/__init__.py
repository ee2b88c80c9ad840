"""Predicted against measured: the records of ``tools/bench_partition``, and how good a model's choice among them is."""

"""Run settings and a cluster -> how the memory tables are split. Pure Python: runs on a login node, no torch."""

"""The parts of ``tools/ablate``: which runs, their processes, their numbers, table and pictures."""

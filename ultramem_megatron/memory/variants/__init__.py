"""The memory variants, one composition a file (README.md: to add one)."""

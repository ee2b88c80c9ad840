"""Utilities for tests, of this project and of those who build on it: ranks on one machine, the oracle, tolerances."""

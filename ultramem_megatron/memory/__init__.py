"""The memory layers: retrieval (dense), value table (sharded), output projection (dense)."""

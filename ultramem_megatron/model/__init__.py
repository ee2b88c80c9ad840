"""The seam to megatron-core's GPT: layers with a memory lane, built for this rank, started from the seed."""

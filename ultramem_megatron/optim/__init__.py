"""AdamW through megatron-core: groups, rates, gradient reduction."""

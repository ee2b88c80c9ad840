"""What ``tools/fuzz_config`` makes configs of, and how it judges what the loader does with them."""

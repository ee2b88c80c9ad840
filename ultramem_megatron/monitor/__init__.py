"""From the numbers of a step to console, JSONL and TensorBoard."""

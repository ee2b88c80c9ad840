"""Checkpoints: sharded, atomic, free of the layout they were saved under."""

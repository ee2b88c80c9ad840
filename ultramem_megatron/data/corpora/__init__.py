"""One reader a source: an unpacked package in, (id, text) documents out. Standard library only."""

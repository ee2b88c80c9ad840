"""The ways to split a value table over the ``mem`` group, one file each (README.md: to add one)."""

"""Closed-book recall: facts stated in the training text, asked with words that are not in it."""

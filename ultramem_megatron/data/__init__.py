"""Corpora, tokenizer, indexed datasets, and the samples that training reads from them."""

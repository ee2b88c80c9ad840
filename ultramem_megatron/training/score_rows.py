"""Prompts and continuations -> rows of tokens to be scored, in batches of like length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ultramem_megatron.data.tokenizer import Tokenizer
from ultramem_megatron.errors import DataError

BATCH_TOKENS = 4096
"""Padding included. Enough to keep a few cores busy; logits of 8k entries then take 128 MiB."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds one continuation."""

    log_likelihood: float
    """Of all its tokens together, in nats; 0 is certain."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """A document's start, of which the tokens from ``scored_from`` on are scored."""

    number: int
    """Of the text it was made of."""
    tokens: list[int]
    scored_from: int


def make_rows(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]], seq_length: int) -> list[Row]:
    """One row a (prompt, continuation), encoded as one text behind an end-of-document token.

    What is scored begins at the first token that differs from the tokens of the prompt alone, so that a token
    which reaches over the border belongs to the continuation. Of a text that is too long the beginning goes.

    Args:
        tokenizer: Of the run.
        texts: A continuation has at least one character.
        seq_length: Tokens that the model may read at once; one more is predicted.

    Raises:
        DataError: A continuation alone is too long.
    """
    prompts = tokenizer.encode_batch([prompt for prompt, _ in texts])
    wholes = tokenizer.encode_batch([prompt + continuation for prompt, continuation in texts])
    rows = []
    for number, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        scored = len(whole) - _common_length(prompt, whole)
        assert scored > 0
        tokens = [tokenizer.eod, *whole][-seq_length - 1 :]
        if scored >= len(tokens):
            raise DataError(
                f'"{texts[number][1].strip()}" has {scored} tokens, and the run was trained with model.seq_length = '
                f"{seq_length}, which must also hold what comes before; train with a longer one"
            )
        rows.append(Row(number, tokens, len(tokens) - scored))
    return rows


def _common_length(first: list[int], second: list[int]) -> int:
    """Tokens at the beginning that two texts share."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of like length together, so that little is padded; a batch of one may exceed ``BATCH_TOKENS``."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if batch and (len(batch) + 1) * len(row.tokens) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch

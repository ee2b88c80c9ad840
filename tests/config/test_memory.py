"""The notation of spans."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramem_megatron.config.memory import Span, parse_spans
from ultramem_megatron.errors import ConfigError


@st.composite
def rising_spans(draw: st.DrawFn) -> list[Span]:
    """Spans that follow one another without overlap."""
    end, spans = 0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8)):
        spans.append(Span(end + gap, end + gap + length))
        end = spans[-1].add
    return spans


@given(rising_spans())
def test_what_is_written_is_read(spans: list[Span]) -> None:
    assert list(parse_spans("/".join(map(str, spans)))) == spans


@given(rising_spans().filter(lambda spans: len(spans) > 1))
def test_the_wrong_order_is_refused(spans: list[Span]) -> None:
    with pytest.raises(ConfigError, match="begins at or before block"):
        parse_spans("/".join(map(str, reversed(spans))))


@given(st.one_of(st.text(max_size=20), st.text("0123456789:/-+ ", max_size=20)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spans = parse_spans(text)
    except ConfigError as refusal:
        assert f'memory.spans = "{text}"' in str(refusal)
        return
    assert parse_spans("/".join(map(str, spans))) == spans
    numbers = [number for span in spans for number in (span.read, span.add)]
    assert numbers == sorted(numbers) and numbers[0] >= 1
    assert all(earlier.add < later.read for earlier, later in itertools.pairwise(spans))

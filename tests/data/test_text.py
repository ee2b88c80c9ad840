"""Cleaning: blocks lose nothing and end at borders; markup and line breaks go."""

from ultramem_megatron.data.corpora.text import decode, keep_lines, reflow, split_blocks, strip_markup


def test_short_text_is_one_block() -> None:
    assert list(split_blocks("one\n\ntwo", 100)) == ["one\n\ntwo"]


def test_blocks_end_at_paragraphs_and_lose_no_word() -> None:
    pieces = [f"paragraph {number} " + "word " * 20 for number in range(50)]
    blocks = list(split_blocks("\n\n".join(pieces), 500))
    assert " ".join(blocks).split() == " ".join(pieces).split()
    assert all(block.startswith("paragraph") for block in blocks)
    assert all(len(block) <= 500 * 1.25 for block in blocks)


def test_text_without_borders_is_cut_hard() -> None:
    blocks = list(split_blocks("x" * 1000, 100))
    assert "".join(blocks) == "x" * 1000
    assert max(map(len, blocks)) <= 125


def test_reflow_joins_lines_but_not_paragraphs() -> None:
    assert reflow("a\nb\n\n \nc  d\n") == "a b\n\nc d"


def test_verse_keeps_its_lines() -> None:
    assert keep_lines("a  \n  b\n\n\n\nc") == "a\n  b\n\nc"


def test_markup_and_entities_are_resolved() -> None:
    assert strip_markup("<p>R&eacute;publique<br>2 < 3</p>") == "République 2 < 3"


def test_windows_1252_is_read_where_utf8_fails() -> None:
    assert decode(b"it\x92s\r\n") == "it\u2019s\n"
    assert decode("é".encode()) == "é"

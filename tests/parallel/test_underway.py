"""Coroutines driven by hand."""

from collections.abc import Generator

from ultramem_megatron.parallel.underway import Underway, finish


class Pause:
    """Awaited once."""

    def __await__(self) -> Generator[None, None, int]:
        yield
        return 10


async def three_lines(lines: list[str]) -> int:
    lines.append("first")
    ten = await Pause()
    lines.append("second")
    twenty = ten + await Pause()
    lines.append("third")
    return twenty


def test_it_goes_on_when_told_to() -> None:
    lines: list[str] = []
    underway = Underway(three_lines(lines))
    assert lines == ["first"]
    underway.advance()
    assert lines == ["first", "second"] and not underway.is_done
    underway.advance()
    assert lines[-1] == "third" and underway.is_done
    assert underway.finish() == underway.finish() == 20


def test_finish_goes_through() -> None:
    lines: list[str] = []
    assert finish(three_lines(lines)) == 20
    assert lines == ["first", "second", "third"]

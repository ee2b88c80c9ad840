"""Which ranks are named, after how many reports, on numbers made by hand."""

import pytest

from ultramem_megatron.monitor.stragglers import REPORTS_IN_A_ROW, RankPlace, StragglerWatch, compare_ranks

ONE_STAGE = [RankPlace(f"n{rank // 2}", 0) for rank in range(6)]


def say(watch: StragglerWatch, *reports: list[float], places: list[RankPlace] = ONE_STAGE) -> list[list[str]]:
    return [watch.look(compare_ranks(seconds, places)) for seconds in reports]


def test_a_rank_is_compared_with_its_stage() -> None:
    places = [RankPlace("n0", rank // 4) for rank in range(6)]
    work = compare_ranks([1.0, 3.0, 2.0, 8.0, 10.0, 30.0], places)
    assert [one.usual_seconds for one in work] == [2.0] * 4 + [10.0] * 2, (
        "of an even number the lower, so of two the fast"
    )
    assert [one.ratio for one in work] == [0.5, 1.5, 1.0, 4.0, 1.0, 3.0]


def test_a_lone_rank_of_a_stage_has_nobody_to_be_slower_than() -> None:
    assert [one.ratio for one in compare_ranks([1.0, 9.0], [RankPlace("n0", 0), RankPlace("n0", 1)])] == [1.0, 1.0]


def test_the_slow_rank_is_named_once_and_taken_back_once() -> None:
    alike, slow = [0.2] * 6, [0.2, 0.2, 0.2, 0.5, 0.2, 0.2]
    said = say(StragglerWatch(ONE_STAGE, 1.5), alike, *[slow] * 5, *[alike] * 5)
    assert said[REPORTS_IN_A_ROW] == [
        "rank 3 on n1 works 0.5 s for a step, 2.5 times as long as ranks with the same work (0.2 s), "
        "in 3 reports in a row"
    ]
    assert said[5 + REPORTS_IN_A_ROW] == ["rank 3 on n1: as fast as the others again"]
    assert sum(map(len, said)) == 2


def test_noise_is_not_named() -> None:
    """Slow now and then, another one each time, or just below the limit."""
    watch = StragglerWatch(ONE_STAGE, 1.5)
    slow = [[0.2] * rank + [0.9] + [0.2] * (5 - rank) for rank in range(6)]
    assert not any(say(watch, slow[0], slow[0], slow[1], slow[1], slow[2], slow[0], *slow, [0.3, *[0.2] * 5], *slow))


def test_a_slow_machine_is_named_with_its_worst_rank_first() -> None:
    said = say(StragglerWatch(ONE_STAGE, 1.5), *[[0.2, 0.2, 0.2, 0.2, 0.4, 0.6]] * REPORTS_IN_A_ROW)
    assert said[-1][0].startswith("rank 5 on n2 works 0.6 s for a step, 3.0 times")
    assert "; rank 4 on n2 works 0.4 s" in said[-1][0]


@pytest.mark.parametrize("slow", [5, 6])
def test_many_are_counted(slow: int) -> None:
    places = [RankPlace("n0", 0)] * 16
    said = say(StragglerWatch(places, 1.5), *[[0.2] * (16 - slow) + [1.0] * slow] * REPORTS_IN_A_ROW, places=places)
    assert f" and {slow - 4} more, in 3 reports" in said[-1][0]

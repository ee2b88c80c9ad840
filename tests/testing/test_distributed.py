"""run_distributed: results, the first failure, hangs, and what it leaves behind."""

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.errors import PlanError
from ultramem_megatron.testing.distributed import RankFailed, RankHung, run_distributed

pytestmark = pytest.mark.slow


class Unpicklable(Exception):
    """Can be dumped, but not rebuilt from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_results_arrive_in_the_order_of_ranks(world_size: int) -> None:
    def sum_of_ranks(offset: int) -> tuple[int, int, float]:
        time.sleep(0.05 * (dist.get_world_size() - dist.get_rank()))  # the last rank reports first
        total = torch.tensor([float(dist.get_rank() + offset)])
        dist.all_reduce(total)
        return dist.get_rank(), dist.get_world_size(), total.item()

    expected = float(sum(rank + 10 for rank in range(world_size)))
    assert run_distributed(world_size, sum_of_ranks, 10) == [(rank, world_size, expected) for rank in range(world_size)]


def test_results_larger_than_a_pipe_arrive_whole() -> None:
    results = run_distributed(2, lambda: torch.full((1 << 20,), float(dist.get_rank())))
    assert [(r.shape, r.unique().item()) for r in results] == [((1 << 20,), 0.0), ((1 << 20,), 1.0)]


def test_backward_runs_in_ranks_after_it_ran_in_the_parent() -> None:
    def gradient() -> float:
        x = torch.ones(3, requires_grad=True)
        (x * x).sum().backward()
        assert x.grad is not None
        return x.grad.sum().item()

    assert gradient() == 6.0
    assert run_distributed(2, gradient) == [6.0, 6.0]


def test_a_rank_has_one_thread_and_ranks_are_processes() -> None:
    results = run_distributed(2, lambda: (torch.get_num_threads(), os.getpid()))
    assert [threads for threads, _ in results] == [1, 1]
    assert len({os.getpid(), *(pid for _, pid in results)}) == 3


def test_a_failure_keeps_its_type_and_names_rank_and_line() -> None:
    def fail_on_rank_1() -> None:
        if dist.get_rank() == 1:
            raise PlanError("no partition fits")
        dist.barrier()  # would wait for ever: the peer must be killed

    started = time.monotonic()
    with pytest.raises(PlanError, match="no partition fits") as caught:
        run_distributed(3, fail_on_rank_1)
    assert time.monotonic() - started < 20
    note = "\n".join(caught.value.__notes__)
    assert "rank 1 of 3 in" in note
    assert 'raise PlanError("no partition fits")' in note
    assert "test_distributed.py" in note


def test_the_cause_is_reported_rather_than_its_consequence() -> None:
    def die_on_rank_2() -> None:
        if dist.get_rank() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.zeros(1))  # the others see a broken connection

    with pytest.raises(RankFailed, match=r"rank 2 of 3 .*killed by SIGKILL"):
        run_distributed(3, die_on_rank_2)


def test_a_dead_rank_is_noticed_though_its_own_child_holds_the_pipe() -> None:
    def leave_a_child_and_die() -> None:
        if os.fork() == 0:
            time.sleep(60)
        os._exit(7)

    started = time.monotonic()
    with pytest.raises(RankFailed, match=r"rank 0 of 1 .*exit code 7"):
        run_distributed(1, leave_a_child_and_die)
    assert time.monotonic() - started < 20


def test_errors_and_results_that_cannot_be_pickled_are_told() -> None:
    def raise_unpicklable() -> None:
        raise Unpicklable(1, 2)

    with pytest.raises(RankFailed, match=r"(?s)rank 0 of 1.*cannot be pickled.*Unpicklable: 1 and 2"):
        run_distributed(1, raise_unpicklable)
    with pytest.raises(RankFailed, match=r"rank 0 of 1.*returned a function that cannot be pickled"):
        run_distributed(1, lambda: lambda: None)
    with pytest.raises(RankFailed, match=r"rank 0 of 1.*SystemExit\(3\)"):
        run_distributed(1, lambda: sys.exit(3))


def test_a_hung_rank_is_named_with_the_line_where_it_stands() -> None:
    def sleep_on_rank_1() -> None:
        if dist.get_rank() == 1:
            time.sleep(600)

    started = time.monotonic()
    with pytest.raises(RankHung, match=r"rank 1 of 2 did not finish within 4 s") as caught:
        run_distributed(2, sleep_on_rank_1, timeout_seconds=4)
    assert time.monotonic() - started < 20
    assert "rank 1 stood at:" in str(caught.value)
    assert "sleep_on_rank_1" in str(caught.value).split("stood at:")[1]
    assert "rank 0 stood at:" not in str(caught.value)
    assert "pytest" not in str(caught.value)  # the frames below the function are not the reader's concern


def test_a_rank_stuck_inside_a_collective_is_named_too() -> None:
    def mismatched() -> None:
        if dist.get_rank() == 0:
            dist.barrier()

    with pytest.raises(RankHung, match=r"rank 0 of 2(?s:.*)in barrier"):
        run_distributed(2, mismatched, timeout_seconds=4)


def test_nothing_is_left_behind_not_even_children_of_ranks() -> None:
    def leave_a_child() -> int:
        child = os.fork()
        if child == 0:
            time.sleep(600)
        return child

    started = time.monotonic()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    children = run_distributed(2, leave_a_child)
    elapsed = time.monotonic() - started
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before
    assert _all_end(children)
    assert elapsed < 15  # nor is it waited for


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _all_end(pids: list[int], within_seconds: float = 10) -> bool:
    """A killed process is there for a moment longer."""
    deadline = time.monotonic() + within_seconds
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(_is_alive, pids))


def forked_parent(work: Callable[[], None]) -> int:
    """A process of its own that runs ranks: a fork of this one, for which torch need not be imported anew."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            atexit._clear()  # pytest's handlers are not its to run
            work()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_exit_handlers_of_the_parent_do_not_run_in_ranks(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def note(line: str) -> None:
        with log.open("a") as file:
            file.write(f"{line}\n")

    def run_ranks() -> None:
        atexit.register(note, "exit handler")
        run_distributed(2, note, "rank")

    assert os.waitpid(forked_parent(run_ranks), 0)[1] == 0
    assert sorted(log.read_text().splitlines()) == ["exit handler", "rank", "rank"]


def test_ranks_do_not_outlive_a_killed_parent() -> None:
    reader, writer = os.pipe()

    def tell_and_sleep() -> None:
        os.write(writer, f"{os.getpid()}\n".encode())  # in one piece: ranks share the pipe
        time.sleep(600)

    def run_ranks() -> None:
        run_distributed(2, tell_and_sleep)

    parent = forked_parent(run_ranks)
    with os.fdopen(reader) as lines:
        ranks = [int(lines.readline()) for _ in range(2)]
        assert all(map(_is_alive, ranks))
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    os.close(writer)
    assert _all_end(ranks)


def test_megatron_is_inherited_by_ranks_and_works_there(megatron: ModuleType) -> None:
    def tensor_parallel_ranks() -> tuple[int, int, bool]:
        was_imported = "megatron.core.models.gpt.gpt_model" in sys.modules
        megatron.parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
        total = megatron.tensor_parallel.reduce_from_tensor_model_parallel_region(torch.tensor([1.0 + dist.get_rank()]))
        return megatron.parallel_state.get_data_parallel_rank(), int(total.item()), was_imported

    assert run_distributed(4, tensor_parallel_ranks) == [(0, 3, True), (0, 3, True), (1, 7, True), (1, 7, True)]
    assert not dist.is_initialized()


def test_size_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="world_size = 0"):
        run_distributed(0, lambda: None)


def test_poisoned_memory_reaches_ranks() -> None:
    assert all(run_distributed(2, lambda: bool(torch.empty(5).isnan().all())))

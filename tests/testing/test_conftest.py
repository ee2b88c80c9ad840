"""What conftest promises to every test."""

import os
import random

import numpy as np
import pytest
import torch


def test_memory_is_poisoned() -> None:
    assert torch.empty(7).isnan().all()
    assert torch.empty_like(torch.zeros(3, dtype=torch.bfloat16)).isnan().all()
    assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


@pytest.mark.parametrize("run", [1, 2])
def test_random_numbers_do_not_depend_on_earlier_tests(run: int) -> None:
    drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
    random.seed(1234), np.random.seed(1234), torch.manual_seed(1234)
    assert drawn == (random.random(), float(np.random.rand()), float(torch.rand(())))


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="concerns machines without a CUDA device")
def test_triton_interprets_where_there_is_no_gpu() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.mark.gpu
def test_gpu_tests_run_only_with_a_gpu() -> None:
    assert torch.cuda.is_available()

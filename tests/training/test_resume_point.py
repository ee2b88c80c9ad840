"""Where a resumed run goes on reading."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ultramem_megatron.testing.tiny import tiny_config


@pytest.fixture
def resumed(megatron: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of a run with batches of 4, resumed after 10 steps with batches of 12."""
    import torch.distributed as dist

    from ultramem_megatron.training import checkpointing
    from ultramem_megatron.training.state import TrainState

    monkeypatch.setattr(checkpointing, "load_checkpoint", lambda *_: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    config = tiny_config("training.global_batch_size=4", "training.micro_batch_size=2")
    parts: Any = dict.fromkeys(("plan", "chunks", "ddp", "messages", "optimizer", "schedule"))
    parts["groups"] = SimpleNamespace(dp_cp=None)
    state = TrainState(config=config, **parts)
    manifest: Any = SimpleNamespace(
        step=10,
        consumed_samples=120,
        consumed_tokens=120 * config.model.seq_length,
        data_fingerprint="same",
        data=None,
        recent_losses=(5.0, 4.5),
        bad_steps=3,
        bad_in_a_row=0,
        skipped_samples=((124, 130),),
    )
    data: Any = SimpleNamespace(fingerprint="same", identity=SimpleNamespace(sources={}))
    checkpointing.resume(state, (Path("checkpoint"), manifest), Path(), data)
    return state


def test_reading_goes_on_behind_the_last_sample_whatever_the_batch(resumed: Any) -> None:
    assert (resumed.step, resumed.consumed_samples) == (10, 120)


def test_what_was_bad_is_remembered(resumed: Any) -> None:
    guard = resumed.guard
    assert (guard.recent_losses, guard.bad_steps, guard.skipped_samples) == ([5.0, 4.5], 3, [(124, 130)])
    resumed.advance()
    assert (resumed.consumed_samples, resumed.next_sample) == (124, 130)


def test_a_step_counts_the_batch_of_this_run(resumed: Any) -> None:
    resumed.advance()
    assert (resumed.step, resumed.consumed_samples) == (11, 124)
    assert resumed.consumed_tokens == 124 * resumed.config.model.seq_length

"""Generated tokens: a function of (seed, stream, i), inside the vocabulary, and predictable but for the noise."""

from collections.abc import Callable
from pathlib import Path

import torch

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.dataset import open_training_data, open_validation_data
from ultramem_megatron.data.synthetic import SyntheticTokens


def make(seed: int = 1, stream: int = 0, vocab_size: int = 1000) -> SyntheticTokens:
    return SyntheticTokens(seq_length=64, vocab_size=vocab_size, seed=seed, stream=stream)


def test_sample_depends_on_seed_stream_and_number_alone() -> None:
    assert torch.equal(make()[7]["tokens"], make()[7]["tokens"])
    for other in (make()[8], make(seed=2)[7], make(stream=1)[7]):
        assert not torch.equal(make()[7]["tokens"], other["tokens"])


def test_tokens_fit_the_vocabulary_and_labels_follow() -> None:
    for vocab_size in (5, 1000):
        sample = make(vocab_size=vocab_size)[3]
        assert sample["tokens"].shape == (64,)
        assert sample["tokens"].dtype == torch.int64
        assert 0 <= int(sample["tokens"].min()) <= int(sample["tokens"].max()) < vocab_size
        assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])


def test_most_steps_of_a_sample_are_equal() -> None:
    steps = [(s["labels"] - s["tokens"]) % 256 for s in (make()[i] for i in range(50))]
    regular = [(one == one.mode().values).float().mean().item() for one in steps]
    assert {one.mode().values.item() for one in steps} == {1, 2, 3, 4}
    assert 0.8 < sum(regular) / len(regular) < 0.95


def test_config_chooses_it_and_validation_is_apart(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config(tmp_path / "nothing", data={"synthetic": True})
    training, validation = open_training_data(config), open_validation_data(config)
    assert list(validation) == ["synthetic"]
    assert not torch.equal(training[0]["tokens"], validation["synthetic"][0]["tokens"])
    assert training[0]["tokens"].shape == (config.model.seq_length,)

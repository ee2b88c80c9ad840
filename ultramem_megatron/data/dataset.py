"""From a ``RunConfig`` to the samples of training and validation.

The order of samples depends on the files, the seed, the sequence length and the weights of the sources, and on
nothing else: not on the number of steps, nor on batch sizes, nor on how the ranks are laid out.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.blended import BlendedSource
from ultramem_megatron.data.folder import CheckedFolder, check_folder_for, open_fitting_tokenizer
from ultramem_megatron.data.identity import DataIdentity, SourceIdentity
from ultramem_megatron.data.indexed import PairInfo
from ultramem_megatron.data.indexed_source import IndexedSource, is_first_rank
from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.data.token_source import TokenSource, TrainingSource
from ultramem_megatron.data.tokenizer import open_tokenizer
from ultramem_megatron.errors import DataError
from ultramem_megatron.parallel.agree import on_first_rank
from ultramem_megatron.units import format_bytes

__all__ = [
    "TokenSource",
    "TrainingSource",
    "open_fitting_tokenizer",
    "open_tokenizer",
    "open_training_data",
    "open_validation_data",
]

# every run validates on the same samples, whatever its own seed
_VALIDATION_SEED = 0

Found = TypeVar("Found")


class FolderSource(TrainingSource):
    """The training samples of a data folder.

    Args:
        checked: The folder.
        opened: Its sources by name.
        config: Of the run.
    """

    def __init__(self, checked: CheckedFolder, opened: dict[str, IndexedSource], config: RunConfig) -> None:
        weights = [config.data.sources.get(name, float(source.num_tokens)) for name, source in opened.items()]
        self._blended = BlendedSource(list(opened.values()), weights)
        self._checked, self._config = checked, config

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._blended[i]

    @property
    def fingerprint(self) -> str:
        return self._blended.fingerprint

    @property
    def identity(self) -> DataIdentity:
        contents = {name: pair.content for name, pair in self._checked.pairs.items()}
        return DataIdentity(
            tokenizer=self._checked.tokenizer_sha256,
            sources={
                name: SourceIdentity(binary=content.binary_sha256, index=content.index_sha256, share=share)
                for (name, content), share in zip(contents.items(), self._blended.shares, strict=True)
            },
            seed=self._config.training.seed,
            seq_length=self._config.model.seq_length,
        )

    @property
    def unread(self) -> str:
        unread = sum(pair.unread_bytes for pair in self._checked.pairs.values())
        if not unread:
            return ""
        folder = self._checked.folder
        return (
            f"data of {folder}: sizes, indices and samples of the tokens are as recorded; {format_bytes(unread)} of "
            f"tokens were not compared with their hashes, which `ultramem data verify {folder}` does"
        )


def open_training_data(config: RunConfig) -> TrainingSource:
    """The endless training samples.

    Collective when torch.distributed is initialised: all ranks call it, and rank 0 builds what is to be built.

    Raises:
        DataError: Files are missing, damaged or do not fit the model, or ``data.sources`` names no source.
    """
    if config.data.synthetic:
        return SyntheticTokens(
            seq_length=config.model.seq_length, vocab_size=config.model.vocab_size, seed=config.training.seed
        )
    checked = _on_one(partial(check_folder_for, config, Split.TRAIN))
    return FolderSource(checked, _open(checked, config, config.training.seed), config)


def open_validation_data(config: RunConfig) -> dict[str, TokenSource]:
    """The held-out samples by source, sources too small to have any left out.

    Collective as ``open_training_data``. Sample i is the same in every run on the same files.

    Raises:
        DataError: As ``open_training_data``, or no source has held-out text.
    """
    if config.data.synthetic:
        sizes = {"seq_length": config.model.seq_length, "vocab_size": config.model.vocab_size}
        return {"synthetic": SyntheticTokens(**sizes, seed=_VALIDATION_SEED, stream=1)}
    checked = _on_one(partial(check_folder_for, config, Split.VALIDATION))
    if not checked.pairs:
        raise DataError(
            f"no source of {checked.folder} has a sequence of model.seq_length = {config.model.seq_length} tokens of "
            "held-out text (1% of the documents is held out); add documents, or set training.eval_interval=0"
        )
    return dict(_open(checked, config, _VALIDATION_SEED))


def _on_one(find: Callable[[], Found]) -> Found:
    """Files are read and compared once, not by every rank."""
    return on_first_rank(find) if dist.is_initialized() else find()


def _open(checked: CheckedFolder, config: RunConfig, seed: int) -> dict[str, IndexedSource]:
    opened = {}
    for name, pair in checked.pairs.items():
        _check_here(pair.info)
        opened[name] = IndexedSource(
            pair.info,
            seq_length=config.model.seq_length,
            seed=seed,
            vocab_size=checked.vocab_size,
            eod=checked.eod,
        )
    _build_first_epochs(opened)
    return opened


def _check_here(info: PairInfo) -> None:
    """The files that rank 0 has checked must be those that this rank sees."""
    for path, size in ((info.binary, info.num_bytes), (info.index, info.index_bytes)):
        here = path.stat().st_size if path.is_file() else None
        if here != size:
            raise DataError(
                f"{path} has {size} bytes on the machine of rank 0 and {here or 'no'} bytes on that of this rank; put "
                "the data folder where all machines see the same files"
            )


def _build_first_epochs(opened: dict[str, IndexedSource]) -> None:
    """Rank 0 builds and stores, the others wait and then read what is stored."""
    if is_first_rank():
        for source in opened.values():
            source.build_first_epoch()
    if dist.is_initialized():
        dist.barrier()

"""From a ``RunConfig`` to the samples of training and validation.

The order of samples depends on the files, the seed, the sequence length and the weights of the sources, and on
nothing else: not on the number of steps, nor on batch sizes, nor on how the ranks are laid out.
"""

import difflib
import logging
from pathlib import Path

import torch.distributed as dist

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.blended import BlendedSource
from ultramem_megatron.data.indexed import check_pair, pair_exists, source_folders
from ultramem_megatron.data.indexed_source import IndexedSource, holds_sample, is_first_rank
from ultramem_megatron.data.jsonl import Split
from ultramem_megatron.data.record import read_record
from ultramem_megatron.data.synthetic import SyntheticTokens
from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.data.tokenizer import Tokenizer, open_tokenizer
from ultramem_megatron.errors import DataError

__all__ = ["TokenSource", "open_tokenizer", "open_training_data", "open_validation_data"]

# every run validates on the same samples, whatever its own seed
_VALIDATION_SEED = 0

logger = logging.getLogger(__name__)


def open_training_data(config: RunConfig) -> TokenSource:
    """The endless training samples.

    Collective when torch.distributed is initialised: all ranks call it, and rank 0 builds what is to be built.

    Raises:
        DataError: Files are missing, damaged or do not fit the model, or ``data.sources`` names no source.
    """
    if config.data.synthetic:
        return SyntheticTokens(
            seq_length=config.model.seq_length, vocab_size=config.model.vocab_size, seed=config.training.seed
        )
    folder, tokenizer = _open_folder(config)
    opened = {
        name: _open(folder / name / Split.TRAIN, config, tokenizer, config.training.seed)
        for name in _source_names(config, folder)
    }
    _build_first_epochs(opened)
    weights = [config.data.sources.get(name, float(source.num_tokens)) for name, source in opened.items()]
    return BlendedSource(list(opened.values()), weights)


def open_validation_data(config: RunConfig) -> dict[str, TokenSource]:
    """The held-out samples by source, sources too small to have any left out.

    Collective as ``open_training_data``. Sample i is the same in every run on the same files.

    Raises:
        DataError: As ``open_training_data``, or no source has held-out text.
    """
    if config.data.synthetic:
        sizes = {"seq_length": config.model.seq_length, "vocab_size": config.model.vocab_size}
        return {"synthetic": SyntheticTokens(**sizes, seed=_VALIDATION_SEED, stream=1)}
    folder, tokenizer = _open_folder(config)
    opened = {
        name: _open(stem, config, tokenizer, _VALIDATION_SEED)
        for name in _source_names(config, folder)
        if _has_held_out(stem := folder / name / Split.VALIDATION, config.model.seq_length)
    }
    if not opened:
        raise DataError(
            f"no source of {folder} has a sequence of model.seq_length = {config.model.seq_length} tokens of "
            "held-out text (1% of the documents is held out); add documents, or set training.eval_interval=0"
        )
    _build_first_epochs(opened)
    return dict(opened)


def _open_folder(config: RunConfig) -> tuple[Path, Tokenizer]:
    folder = Path(config.data.folder)
    if not folder.is_dir():
        raise DataError(
            f"data.folder = {folder} does not exist; make it with `ultramem data prepare --out {folder}`, or set "
            "data.synthetic=true to train on generated tokens"
        )
    tokenizer = open_tokenizer(folder)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise DataError(
            f"{folder}/tokenizer.json has {tokenizer.vocab_size} entries, more than model.vocab_size = "
            f"{config.model.vocab_size}; set model.vocab_size={tokenizer.vocab_size}"
        )
    return folder, tokenizer


def _source_names(config: RunConfig, folder: Path) -> list[str]:
    """Sorted, so that the order of a YAML file does not matter."""
    present = source_folders(folder)
    if not present:
        raise DataError(
            f"{folder} holds no <source>/train.bin; make it with `ultramem data build --out {folder}`, or all of the "
            f"folder with `ultramem data prepare --out {folder}`"
        )
    for name in config.data.sources:
        if not (folder / name).is_dir():
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            raise DataError(
                f"data.sources.{name} is not a source of {folder}, which holds {', '.join(present)}; "
                f'the nearest is "{near[0]}"'
            )
    names = sorted(config.data.sources) or present
    _check_tokenizer(folder, names)
    return names


def _check_tokenizer(folder: Path, names: list[str]) -> None:
    record = read_record(folder)
    for name in names:
        entry = record.sources.get(name)
        if entry and record.tokenizer and entry.tokenizer_sha256 != record.tokenizer.sha256:
            raise DataError(
                f"{folder / name} was encoded with another tokenizer than {folder}/tokenizer.json; encode it again "
                f"with `ultramem data build --sources {name} --out {folder}`, or leave it out of data.sources"
            )


def _has_held_out(stem: Path, seq_length: int) -> bool:
    if not pair_exists(stem):
        return False
    info = check_pair(stem)
    if not holds_sample(info, seq_length):
        logger.warning("%s.bin holds %d tokens, less than one sample; not validated on", stem, info.tokens)
        return False
    return True


def _open(stem: Path, config: RunConfig, tokenizer: Tokenizer, seed: int) -> IndexedSource:
    return IndexedSource(
        check_pair(stem),
        seq_length=config.model.seq_length,
        seed=seed,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
    )


def _build_first_epochs(opened: dict[str, IndexedSource]) -> None:
    """Rank 0 builds and stores, the others wait and then read what is stored."""
    if is_first_rank():
        for source in opened.values():
            source.build_first_epoch()
    if dist.is_initialized():
        dist.barrier()

"""Whether a checkpoint was trained on the data that a run reads."""

from pathlib import Path

from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.data.token_source import TrainingSource
from ultramem_megatron.data.tokenizer import TOKENIZER_FILE
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.files import failures_named, sha256_of

_SHOWN = 2


def data_differences(manifest: Manifest, data: TrainingSource) -> list[str]:
    """What ``data`` holds otherwise than what the checkpoint was trained on, for people.

    A checkpoint from before contents were hashed knows the lengths of documents and their order alone.
    """
    if manifest.data is not None:
        return data.identity.content_differences(manifest.data)
    if manifest.data_fingerprint == data.fingerprint:
        return []
    return [
        "lengths or order of documents have the hash "
        f"{manifest.data_fingerprint} there and {data.fingerprint} here (it was written before contents were hashed)"
    ]


def compare_data(folder: Path, manifest: Manifest, data: TrainingSource, *, allow_change: bool) -> list[str]:
    """What a run that goes on from a checkpoint should be told of its data.

    Args:
        folder: The checkpoint.
        manifest: Of it.
        data: What the run reads.
        allow_change: ``data.allow_change``.

    Raises:
        CheckpointError: The data are other ones, and that is not allowed; names files and both hashes.
    """
    reads_on = f"; this run reads on from sample {manifest.consumed_samples} of its own order"
    if differs := data_differences(manifest, data):
        what = "; ".join(differs[:_SHOWN]) + (f"; and {len(differs) - _SHOWN} more" if len(differs) > _SHOWN else "")
        if not allow_change:
            raise CheckpointError(
                f"checkpoint {folder} was trained on other data: {what}. Put the files back, name the folder that "
                "holds them (data.folder), or set data.allow_change=true to go on with these"
            )
        return [f"{folder} was trained on other data, and data.allow_change=true: {what}{reads_on}"]
    if manifest.data is None:
        blending = "; more than two sources now take turns in another order" if len(data.identity.sources) > 2 else ""
        return [
            f"{folder} was written before contents of data were hashed: lengths and order of documents are the same, "
            f"their tokens and the tokenizer were not compared{blending}"
        ]
    order = data.identity.order_differences(manifest.data)
    return [f"{folder} was trained on the same data in another order: {'; '.join(order)}{reads_on}"] if order else []


def check_same_tokenizer(folder: Path, manifest: Manifest, data_folder: Path) -> None:
    """Refuse a tokenizer that the model was not trained with: its tokens would mean other text.

    Raises:
        CheckpointError: With both hashes.
    """
    if manifest.data is None or not manifest.data.tokenizer:
        return
    path = data_folder / TOKENIZER_FILE
    with failures_named(path, "read"):
        here = sha256_of(path)
    if here != manifest.data.tokenizer:
        raise CheckpointError(
            f"checkpoint {folder} was trained with another tokenizer: {path} has sha256 {here}, and it was "
            f"{manifest.data.tokenizer}; put that one back"
        )

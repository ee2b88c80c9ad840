"""``ultramem eval``: recall tasks and validation loss of the newest checkpoint, on one process."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from ultramem_megatron.checkpoint.same_data import data_differences
from ultramem_megatron.data.batch import Batch, BatchSampler
from ultramem_megatron.data.dataset import open_training_data, open_validation_data
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.recall.registry import EVALUATIONS, LOSS, check_name
from ultramem_megatron.data.recall.store import open_questions
from ultramem_megatron.data.recall.task import NUM_CHOICES, Question
from ultramem_megatron.data.token_source import TokenSource
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import write_json
from ultramem_megatron.training.score_rows import Score
from ultramem_megatron.training.trained_model import TrainedModel, load_settings, open_trained_model

RESULTS_FOLDER = "eval"
DEFAULT_QUESTIONS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What every evaluation says."""

    task: str
    step: int
    """Of the checkpoint."""
    consumed_tokens: int
    """Of training, up to the checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallEvaluation(Evaluation):
    """Four-way questions, answered with the likeliest choice."""

    questions: int
    accuracy: float
    standard_error: float
    """Of ``accuracy``: how far another draw of as many questions would move it."""
    normalised_accuracy: float
    """With log-likelihoods divided by the bytes of the choice, so that a long answer is no handicap."""
    chance: float
    nats: float
    """Negative log-likelihood of the right choice, mean over its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossEvaluation(Evaluation):
    """Validation loss, as training reports it."""

    loss: float
    """Mean over sources, in nats per token."""
    source_losses: dict[str, float]


def evaluate(
    run_dir: Path,
    names: Sequence[str],
    device: torch.device,
    max_questions: int = DEFAULT_QUESTIONS,
    progress: Progress = silent,
) -> list[Evaluation]:
    """Weigh the newest checkpoint; each result is also written to ``run_dir/eval/<task>.json``.

    Args:
        run_dir: Of the run.
        names: Recall tasks of the run's data folder, or ``loss``.
        device: Of this process.
        max_questions: Of a recall task; the first of its file, which are in random order.
        progress: Told how far it is.

    Raises:
        DataError: A task is unknown, or the data folder does not have it, or other text than the run was trained on.
        CheckpointError: No run, or no checkpoint.
    """
    for name in names:
        check_name(name, EVALUATIONS)
    asked = _read_questions(run_dir, names, max_questions)
    model = open_trained_model(run_dir, device)
    if asked:
        _refuse_other_data(model, run_dir)
    results: list[Evaluation] = []
    for name in dict.fromkeys(names):
        result = _measure_loss(model, progress) if name == LOSS else ask(model, name, asked[name], progress)
        write_json(run_dir / RESULTS_FOLDER / f"{name}.json", dataclasses.asdict(result))
        results.append(result)
    return results


def _read_questions(run_dir: Path, names: Sequence[str], max_questions: int) -> dict[str, list[Question]]:
    """Before the model is opened, so that what is missing is told at once."""
    data = load_settings(run_dir).data
    if data.synthetic:
        raise DataError(
            f"run {run_dir} was trained on generated tokens (data.synthetic=true), which state no facts; its "
            "validation loss is in metrics.jsonl"
        )
    folder = Path(data.folder)
    return {name: open_questions(folder, name)[1][:max_questions] for name in names if name != LOSS}


def _refuse_other_data(model: TrainedModel, run_dir: Path) -> None:
    """Questions about facts that the run never read would be answered by chance, and look like a result."""
    differs = data_differences(model.manifest, open_training_data(model.config))
    if differs:
        raise DataError(
            f"data folder {model.config.data.folder} has changed since run {run_dir} was trained, so its questions may "
            f"ask for facts that the run never read: {'; '.join(differs[:2])}. Make the folder as it was, or train "
            "again"
        )


def ask(model: TrainedModel, task: str, questions: Sequence[Question], progress: Progress = silent) -> RecallEvaluation:
    """Score all choices of all questions."""
    texts = [(question.prompt, choice) for question in questions for choice in question.choices]
    scores = model.score(texts, lambda _, fraction: progress(task, fraction))
    right = [question.answer + NUM_CHOICES * number for number, question in enumerate(questions)]
    sizes = [len(choice.encode()) for _, choice in texts]
    accuracy = _share_first([score.log_likelihood for score in scores], right)
    return RecallEvaluation(
        task=task,
        step=model.manifest.step,
        consumed_tokens=model.manifest.consumed_tokens,
        questions=len(questions),
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / max(len(questions) - 1, 1)),
        normalised_accuracy=_share_first(
            [score.log_likelihood / size for score, size in zip(scores, sizes, strict=True)], right
        ),
        chance=1 / NUM_CHOICES,
        nats=_nats_per_token([scores[place] for place in right]),
    )


def _share_first(values: Sequence[float], right: Sequence[int]) -> float:
    """Share of the questions whose right choice has the largest value.

    Args:
        values: Of all choices, question after question.
        right: Places of the right ones, one a question.
    """
    hits = [
        max(range(first, first + NUM_CHOICES), key=values.__getitem__) == place
        for first, place in zip(range(0, len(values), NUM_CHOICES), right, strict=True)
    ]
    return sum(hits) / len(hits)


def _nats_per_token(scores: Sequence[Score]) -> float:
    return -sum(score.log_likelihood for score in scores) / sum(score.tokens for score in scores)


def _measure_loss(model: TrainedModel, progress: Progress) -> LossEvaluation:
    sources = open_validation_data(model.config)
    progress(LOSS, 0.0)
    losses = {}
    for number, (name, source) in enumerate(sources.items(), 1):
        losses[name] = _source_loss(model, source)
        progress(LOSS, number / len(sources))
    return LossEvaluation(
        task=LOSS,
        step=model.manifest.step,
        consumed_tokens=model.manifest.consumed_tokens,
        loss=sum(losses.values()) / len(losses),
        source_losses=losses,
    )


def _source_loss(model: TrainedModel, source: TokenSource) -> float:
    """Over the same samples as ``training.validation``: the first ``eval_batches`` global batches."""
    training = model.config.training
    sampler = BatchSampler(
        source, global_batch_size=training.global_batch_size, micro_batch_size=training.micro_batch_size
    )
    batches = [batch for step in islice(sampler, training.eval_batches) for batch in step]
    return sum(_batch_loss(model, batch) for batch in batches) / len(batches)


@torch.no_grad()
def _batch_loss(model: TrainedModel, batch: Batch) -> float:
    tokens, positions, labels = (batch[name].to(model.device) for name in ("tokens", "position_ids", "labels"))
    return float(model.model(tokens, positions, None, labels=labels).float().mean())

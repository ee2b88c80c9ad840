"""The newest checkpoint of a run, opened on one process to write text or to weigh it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ultramem_megatron.checkpoint.load import load_weights
from ultramem_megatron.checkpoint.manifest import Manifest
from ultramem_megatron.checkpoint.same_data import check_same_tokenizer
from ultramem_megatron.checkpoint.store import find_newest
from ultramem_megatron.config.load import load_run_config
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.parallelism import ParallelismConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.dataset import open_fitting_tokenizer
from ultramem_megatron.data.progress import Progress, silent
from ultramem_megatron.data.tokenizer import Tokenizer
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.model.build import UltraMemModel, build_model_chunks
from ultramem_megatron.model.transformer_config import transformer_config
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.training.score_rows import Row, Score, batches, make_rows
from ultramem_megatron.training.setup import build_run_groups

BOUNDLESS = ClusterSpec(name="one process", nodes=1, gpus_per_node=1, memory_bytes=2**62)
"""A plan is reckoned for training; weights alone need a fraction, and what does not fit says so itself."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model with its tokenizer."""

    model: UltraMemModel
    tokenizer: Tokenizer
    config: RunConfig
    """Of the run, changed to one process."""
    manifest: Manifest
    """Of the checkpoint."""
    device: torch.device

    @torch.no_grad()
    def continue_text(self, prompt: str, *, tokens: int, temperature: float, seed: int) -> str:
        """``tokens`` more tokens, or fewer when the model ends the document.

        The whole context is computed anew for each token.
        """
        draw = torch.Generator().manual_seed(seed)
        ids = self.tokenizer.encode(prompt) or [self.tokenizer.eod]
        written: list[int] = []
        for _ in range(tokens):
            window = torch.tensor([(ids + written)[-self.config.model.seq_length :]], device=self.device)
            logits_V = self._logits(window)[0, -1, : self.tokenizer.vocab_size].float().cpu()
            written.append(_pick(logits_V, temperature, draw))
            if written[-1] == self.tokenizer.eod:
                break
        return self.tokenizer.decode(written)

    @torch.no_grad()
    def score(self, texts: Sequence[tuple[str, str]], progress: Progress = silent) -> list[Score]:
        """Log-likelihood of each continuation after its prompt, at the start of a document.

        Which tokens count, ``make_rows`` says. Probabilities are over all entries of the output layer, as in the
        training loss.

        Args:
            texts: (prompt, continuation); a continuation has at least one character.
            progress: Told how far it is.

        Raises:
            DataError: A continuation alone is longer than ``model.seq_length``.
        """
        rows = make_rows(self.tokenizer, texts, self.config.model.seq_length)
        scores = [Score(0.0, 0)] * len(rows)
        done = 0
        progress("score", 0.0)
        for batch in batches(rows):
            for row, log_likelihood in zip(batch, self._score_batch(batch), strict=True):
                scores[row.number] = Score(log_likelihood, len(row.tokens) - row.scored_from)
            done += len(batch)
            progress("score", done / len(rows))
        return scores

    def _score_batch(self, batch: list[Row]) -> list[float]:
        longest = max(len(row.tokens) for row in batch)
        # padded on the right: a causal model does not look there
        padded = [row.tokens + [self.tokenizer.eod] * (longest - len(row.tokens)) for row in batch]
        tokens_BS = torch.tensor(padded, device=self.device)
        places = [(i, t) for i, row in enumerate(batch) for t in range(row.scored_from, len(row.tokens))]
        row_P, place_P = torch.tensor(places, device=self.device).unbind(1)
        log_p_PV = self._logits(tokens_BS[:, :-1])[row_P, place_P - 1].float().log_softmax(dim=-1)
        log_p_P = log_p_PV.gather(1, tokens_BS[row_P, place_P].unsqueeze(1)).squeeze(1)
        sums_B = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, row_P.cpu(), log_p_P.cpu().double())
        return [float(value) for value in sums_B]

    def _logits(self, tokens_BS: Tensor) -> Tensor:
        """[batch, seq, padded vocabulary]."""
        positions_BS = torch.arange(tokens_BS.shape[1], device=self.device).expand_as(tokens_BS)
        logits: Tensor = self.model(tokens_BS, positions_BS, None)
        return logits


def open_trained_model(run_dir: Path, device: torch.device) -> TrainedModel:
    """The newest checkpoint of a run, on this process alone.

    Raises:
        CheckpointError: The folder holds no run, or the run no checkpoint, or it had another tokenizer.
        DataError: The tokenizer is missing, or has tokens that the model has not.
    """
    config = alone(load_settings(run_dir))
    found = find_newest(run_dir / "checkpoints")
    if found is None:
        raise CheckpointError(f"run {run_dir} has no checkpoint yet; train it with `ultramem pretrain`")
    folder, manifest = found
    tokenizer = open_fitting_tokenizer(config)
    check_same_tokenizer(folder, manifest, Path(config.data.folder))
    plan = choose_plan(config, BOUNDLESS)
    groups = build_run_groups(config, plan, device)
    chunks = build_model_chunks(config, plan, groups, transformer_config(config))
    load_weights(folder, manifest, chunks)
    return TrainedModel(chunks[0].eval(), tokenizer, config, manifest, device)


def load_settings(run_dir: Path) -> RunConfig:
    """The config that a run was trained with.

    Raises:
        CheckpointError: The folder holds no run.
    """
    if not (run_dir / "config.yaml").is_file():
        raise CheckpointError(f"--run-dir {run_dir} holds no config.yaml; name the folder of a run")
    return load_run_config(run_dir / "config.yaml")


def alone(config: RunConfig) -> RunConfig:
    """The same model on one process."""
    memory = dataclasses.replace(config.memory, partition=PartitionName.AUTO, parallel_size="auto")
    return dataclasses.replace(config, memory=memory, parallelism=ParallelismConfig())


def _pick(logits_V: Tensor, temperature: float, draw: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(dim=-1), 1, generator=draw))

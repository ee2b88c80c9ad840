"""Text from a trained model: one process, the whole context computed anew for each token."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from ultramem_megatron.checkpoint.load import load_weights
from ultramem_megatron.checkpoint.store import find_newest
from ultramem_megatron.config.load import load_run_config
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.config.parallelism import ParallelismConfig
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.dataset import open_tokenizer
from ultramem_megatron.data.tokenizer import Tokenizer
from ultramem_megatron.errors import CheckpointError
from ultramem_megatron.model.build import UltraMemModel, build_model_chunks
from ultramem_megatron.model.transformer_config import transformer_config
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import ClusterSpec
from ultramem_megatron.training.setup import build_run_groups

BOUNDLESS = ClusterSpec(name="one process", nodes=1, gpus_per_node=1, memory_bytes=2**62)
"""A plan is reckoned for training; weights alone need a fraction, and what does not fit says so itself."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model with its tokenizer."""

    model: UltraMemModel
    tokenizer: Tokenizer
    seq_length: int
    device: torch.device

    @torch.no_grad()
    def continue_text(self, prompt: str, *, tokens: int, temperature: float, seed: int) -> str:
        """``tokens`` more tokens, or fewer when the model ends the document."""
        draw = torch.Generator().manual_seed(seed)
        ids = self.tokenizer.encode(prompt) or [self.tokenizer.eod]
        written: list[int] = []
        for _ in range(tokens):
            window = torch.tensor([(ids + written)[-self.seq_length :]], device=self.device)
            positions = torch.arange(window.shape[1], device=self.device).unsqueeze(0)
            logits_V = self.model(window, positions, None)[0, -1, : self.tokenizer.vocab_size].float().cpu()
            written.append(_pick(logits_V, temperature, draw))
            if written[-1] == self.tokenizer.eod:
                break
        return self.tokenizer.decode(written)


def open_trained_model(run_dir: Path, device: torch.device) -> TrainedModel:
    """The newest checkpoint of a run, on this process alone.

    Raises:
        CheckpointError: The folder holds no run, or the run no checkpoint.
    """
    if not (run_dir / "config.yaml").is_file():
        raise CheckpointError(f"--run-dir {run_dir} holds no config.yaml; name the folder of a run")
    config = alone(load_run_config(run_dir / "config.yaml"))
    found = find_newest(run_dir / "checkpoints")
    if found is None:
        raise CheckpointError(f"run {run_dir} has no checkpoint yet; train it with `ultramem pretrain`")
    plan = choose_plan(config, BOUNDLESS)
    groups = build_run_groups(config, plan, device)
    chunks = build_model_chunks(config, plan, groups, transformer_config(config))
    load_weights(found[0], chunks)
    tokenizer = open_tokenizer(Path(config.data.folder))
    return TrainedModel(chunks[0].eval(), tokenizer, config.model.seq_length, device)


def alone(config: RunConfig) -> RunConfig:
    """The same model on one process."""
    memory = dataclasses.replace(config.memory, partition=PartitionName.AUTO, parallel_size="auto")
    return dataclasses.replace(config, memory=memory, parallelism=ParallelismConfig())


def _pick(logits_V: torch.Tensor, temperature: float, draw: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(dim=-1), 1, generator=draw))

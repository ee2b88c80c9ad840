"""With the CPU seam, megatron-core trains, saves and resumes on gloo: under another layout, the same losses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ultramem_megatron.testing.distributed import run_distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the seam is for machines without CUDA"),
]

SEQUENCE = 8
STEPS = 5
SAVED_BEFORE = 2
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Layout:
    """Degrees; ranks beyond tensor and pipeline are data parallel."""

    ranks: int
    tensor: int = 1
    pipeline: int = 1
    chunks: int | None = None
    """Virtual pipeline stages of a rank."""


class SmallRun:
    """A GPT of 4 layers with the distributed optimizer and gradient clipping, on the ranks of a layout."""

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        from megatron.core import parallel_state
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline, layout.chunks)
        model_parallel_cuda_manual_seed(1)
        self.config = self._config(layout, dtype)
        numbers = range(layout.chunks) if layout.chunks else [None]
        self.models = [self._chunk(number, dtype) for number in numbers]
        optimizer_config = OptimizerConfig(
            optimizer="adam", lr=1e-2, clip_grad=0.1, bf16=dtype is torch.bfloat16, use_distributed_optimizer=True
        )
        self.optimizer = get_megatron_optimizer(optimizer_config, self.models)
        self.config.grad_scale_func = self.optimizer.scale_loss

    @staticmethod
    def _config(layout: Layout, dtype: torch.dtype) -> Any:
        from megatron.core.distributed import finalize_model_grads
        from megatron.core.transformer.transformer_config import TransformerConfig

        return TransformerConfig(
            num_layers=4,
            hidden_size=16,
            num_attention_heads=2,
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.chunks,
            use_cpu_initialization=True,
            pipeline_dtype=dtype,
            params_dtype=dtype,
            bf16=dtype is torch.bfloat16,
            add_bias_linear=False,
            bias_dropout_fusion=False,
            gradient_accumulation_fusion=False,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            finalize_model_grads_func=finalize_model_grads,
        )

    def _chunk(self, number: int | None, dtype: torch.dtype) -> Any:
        from megatron.core import parallel_state
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.transformer.module import Float16Module

        model = GPTModel(
            self.config,
            get_gpt_layer_local_spec(),
            vocab_size=32,
            max_sequence_length=SEQUENCE,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number),
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
            vp_stage=number,
        )
        wrapped = Float16Module(self.config, model) if dtype is torch.bfloat16 else model
        ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        return DistributedDataParallel(self.config, ddp_config, wrapped, disable_bucketing=bool(number))

    def _state(self, loading: bool) -> dict[str, Any]:
        metadata = {
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
            "chained_optim_avoid_prefix": True,
        }
        if loading:  # a fresh optimizer of torch has no state to load into
            for chained in self.optimizer.chained_optimizers:
                chained._init_optimizer_states_with_dummy_values()
        weights = {
            f"model{i}": chunk.module.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(self.models)
        }
        shards = weights if len(self.models) > 1 else weights["model0"]
        return weights | {"optimizer": self.optimizer.sharded_state_dict(shards, is_loading=loading, metadata=metadata)}

    def save(self, folder: Path) -> None:
        from megatron.core import dist_checkpointing

        folder.mkdir(exist_ok=True)
        dist_checkpointing.save(self._state(loading=False), str(folder))

    def load(self, folder: Path) -> None:
        from megatron.core import dist_checkpointing

        loaded = dist_checkpointing.load(self._state(loading=True), str(folder))
        for i, chunk in enumerate(self.models):
            chunk.module.load_state_dict(loaded[f"model{i}"])
        self.optimizer.load_state_dict(loaded["optimizer"])

    def step(self, number: int) -> list[float]:
        """One optimizer step; the losses of its micro-batches on the last stage."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        seeds = range(number * MICRO_BATCHES, (number + 1) * MICRO_BATCHES)
        for chunk in self.models:
            chunk.zero_grad_buffer()
        results = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[iter(seeds) for _ in self.models],
            model=self.models,
            num_microbatches=MICRO_BATCHES,
            seq_length=SEQUENCE,
            micro_batch_size=2,
            forward_only=False,
        )
        self.optimizer.step()
        return [result["loss"] for result in results]

    def steps_after_save(self) -> list[float]:
        return [loss for number in range(SAVED_BEFORE, STEPS) for loss in self.step(number)]


def forward(seeds: Iterator[int], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    tokens = torch.randint(32, (2, SEQUENCE + 1), generator=torch.Generator().manual_seed(next(seeds)))
    positions = torch.arange(SEQUENCE).expand(2, -1)
    output = model(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())
    return output, lambda loss: (loss.float().mean(), {"loss": loss.float().mean().item()})


def train_and_save(layout: Layout, dtype: torch.dtype, folder: Path) -> list[float]:
    """All steps; returns the losses of those after the save."""
    run = SmallRun(layout, dtype)
    for number in range(SAVED_BEFORE):
        run.step(number)
    run.save(folder)
    return run.steps_after_save()


def resume(layout: Layout, dtype: torch.dtype, folder: Path) -> list[float]:
    run = SmallRun(layout, dtype)
    run.load(folder)
    return run.steps_after_save()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)], ids=str)
def test_a_run_resumes_under_other_layouts(
    megatron: ModuleType, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    expected = run_distributed(1, train_and_save, Layout(1), dtype, tmp_path / "saved")[-1]
    assert len(expected) == (STEPS - SAVED_BEFORE) * MICRO_BATCHES
    for layout in (Layout(2), Layout(2, tensor=2), Layout(2, pipeline=2), Layout(4, tensor=2, pipeline=2)):
        losses = run_distributed(layout.ranks, resume, layout, dtype, tmp_path / "saved")[-1]
        assert losses == pytest.approx(expected, rel=tolerance), layout


def test_an_interleaved_pipeline_resumes_to_the_bit(megatron: ModuleType, tmp_path: Path) -> None:
    layout = Layout(2, pipeline=2, chunks=2)
    expected = run_distributed(2, train_and_save, layout, torch.float32, tmp_path / "saved")[-1]
    assert len(expected) == (STEPS - SAVED_BEFORE) * MICRO_BATCHES
    assert run_distributed(2, resume, layout, torch.float32, tmp_path / "saved")[-1] == expected

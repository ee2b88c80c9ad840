"""Two steps of what was accepted and planned: it trains, or is refused with a reason."""

import dataclasses
import os
from pathlib import Path

import torch
import torch.distributed as dist

from ultramem_launch.verbs.info import describe
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import RunFailure, UltraMemError, one_paragraph
from ultramem_megatron.parallel import cpu_seam, mcore_repairs
from ultramem_megatron.planning.choose import choose_plan
from ultramem_megatron.planning.cluster import local_cluster
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.training.pretrain import pretrain

STEPS = 2
MOST_FLOPS = 3e10
"""Of a trial: seconds of one core."""
MOST_PARAMETERS = 20_000_000
MOST_PASSES = 512
SECONDS = 120.0


def is_small(config: RunConfig) -> bool:
    """Whether two steps take seconds here. Larger ones differ in numbers alone."""
    batch, facts = config.training.global_batch_size, describe(config)
    validated = config.training.eval_batches * batch if config.training.eval_interval else 0
    flops = facts["flops_per_token"] * config.model.seq_length * (3 * STEPS * batch + validated)
    passes = (STEPS * batch + validated) / config.training.micro_batch_size * config.model.layers
    return flops < MOST_FLOPS and sum(facts["parameters"].values()) < MOST_PARAMETERS and passes < MOST_PASSES


def prepare() -> None:
    """Once, before ranks are forked: megatron-core is changed so that it runs on CPUs."""
    cpu_seam.install()
    mcore_repairs.install()


def train(config: RunConfig, run_dir: Path) -> tuple[str, str]:
    """Train two steps on as many forked ranks as the config needs, one or two.

    Returns:
        ("trained", ""), ("refused", why) or ("crashed", what).
    """
    stop = STEPS if config.training.stop_after == 0 else min(STEPS, config.training.stop_after)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, stop_after=stop))
    refused = ""
    for ranks in (1, 2):
        try:
            config.check_world_size(ranks)
            run_distributed(ranks, _train, config, run_dir, timeout_seconds=SECONDS)
        except (UltraMemError, RunFailure) as error:
            refused = one_paragraph(f"{type(error).__name__}: {error}")
            continue
        except Exception as error:
            notes = "".join(getattr(error, "__notes__", []))
            return "crashed", f"{type(error).__name__}: {error} {notes}"[-1500:]
        steps = min(stop, config.training.steps)
        stepped = (run_dir / "metrics.jsonl").read_text().count('"step"') if (run_dir / "metrics.jsonl").exists() else 0
        return ("trained", "") if stepped >= steps else ("crashed", f"{stepped} of {steps} steps are recorded")
    return "refused", refused


def _train(config: RunConfig, run_dir: Path) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # hundreds of runs would tell their steps
        os.dup2(silence, stream)
    plan = choose_plan(config, local_cluster(dist.get_world_size()))
    pretrain(config, plan, run_dir, torch.device("cpu"))

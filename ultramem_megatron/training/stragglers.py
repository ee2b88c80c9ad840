"""Says which rank the others wait for."""

import socket

import torch
import torch.distributed as dist

from ultramem_megatron.metrics import catalogue
from ultramem_megatron.monitor.events import EventLog
from ultramem_megatron.monitor.publish import Publisher
from ultramem_megatron.monitor.stragglers import RankPlace, StragglerWatch, compare_ranks
from ultramem_megatron.parallel.work_meter import Stretch, WorkMeter
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState


class ReportStragglers(Hook):
    """Every ``monitor.log_interval`` steps: the own work of each rank in the step before that one.

    In the step before, so that a GPU is done with it when it is asked for the times; and after the first of a process,
    which compiles and allocates. To be the first hook: what the others do after a step is not the step's work.
    """

    def __init__(self, publisher: Publisher, events: EventLog, meter: WorkMeter, state: TrainState) -> None:
        """Collective over the world."""
        self.publisher, self.events, self.meter = publisher, events, meter
        places: list[RankPlace] = [RankPlace("", 0)] * dist.get_world_size()
        dist.all_gather_object(places, RankPlace(socket.gethostname(), state.groups.pipeline_rank))
        self.places = places
        self.watch = StragglerWatch(places, state.config.resilience.straggler_ratio)
        self.first_step = state.step + 1
        self.measured: Stretch | None = None

    def before_step(self, state: TrainState) -> None:
        interval, step = state.config.monitor.log_interval, state.step + 1
        if state.step % interval == 0:
            self._report(state)
        if (step + 1) % interval == 0 and step > self.first_step:
            self.meter.begin()

    def after_step(self, state: TrainState, result: StepResult) -> None:
        if self.meter.is_measuring:
            self.measured = self.meter.end()

    def on_exit(self, state: TrainState) -> None:
        self._report(state)

    def _report(self, state: TrainState) -> None:
        """Between two steps, so that it does not count as time of one. Collective over the world."""
        if self.measured is None:
            return
        own = torch.tensor([self.measured.own_seconds()], dtype=torch.float64, device=state.groups.device)
        self.measured = None
        of_ranks = own.new_empty(dist.get_world_size())
        dist.all_gather_into_tensor(of_ranks, own)
        if dist.get_rank() != 0:
            return  # nor does its device wait for the numbers
        work = compare_ranks(of_ranks.tolist(), self.places)
        slowest = max(work, key=lambda one: one.ratio)
        values = {
            catalogue.SLOWEST_RANK_RATIO.name: slowest.ratio,
            catalogue.SLOWEST_RANK_SECONDS.name: slowest.seconds,
            catalogue.SLOWEST_RANK.name: slowest.rank,
        }
        self.publisher.publish(state.step, values)
        for words in self.watch.look(work):
            self.events.write(state.step, "straggler", words)
            self.publisher.text(state.step, "straggler", words)

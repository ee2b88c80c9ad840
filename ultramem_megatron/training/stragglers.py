"""Says which rank the others wait for."""

import torch
import torch.distributed as dist

from ultramem_megatron.metrics import catalogue
from ultramem_megatron.monitor.events import EventLog
from ultramem_megatron.monitor.publish import Publisher
from ultramem_megatron.monitor.stragglers import RankPlace, StragglerWatch, compare_ranks
from ultramem_megatron.parallel.work_meter import Stretch, WorkMeter
from ultramem_megatron.training.heartbeat import machine_name
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState


class MeasureWork(Hook):
    """The own work of this rank in the step before each that is reported, every ``monitor.log_interval`` steps.

    In the step before, so that a GPU is done with it when it is asked for the times; and after the first of a process,
    which compiles and allocates. To be the first hook: what others do after a step is not the step's work.
    """

    def __init__(self, meter: WorkMeter, state: TrainState) -> None:
        self.meter = meter
        self.first_step = state.step + 1
        self.measured: Stretch | None = None

    def before_step(self, state: TrainState) -> None:
        step = state.step + 1
        if (step + 1) % state.config.monitor.log_interval == 0 and step > self.first_step:
            self.meter.begin()

    def after_step(self, state: TrainState, result: StepResult) -> None:
        if self.meter.is_measuring:
            self.measured = self.meter.end()


class ReportStragglers(Hook):
    """What was measured, of all ranks, and who is named for it. After the hook that times the steps."""

    def __init__(self, publisher: Publisher, events: EventLog, work: MeasureWork, state: TrainState) -> None:
        """Collective over the world."""
        self.publisher, self.events, self.work = publisher, events, work
        places: list[RankPlace] = [RankPlace("", 0)] * dist.get_world_size()
        dist.all_gather_object(places, RankPlace(machine_name(), state.groups.pipeline_rank))
        self.places = places
        self.watch = StragglerWatch(places, state.config.resilience.straggler_ratio)

    def after_step(self, state: TrainState, result: StepResult) -> None:
        """Collective over the world in the steps that are reported."""
        if result.step % state.config.monitor.log_interval or self.work.measured is None:
            return
        own = torch.tensor([self.work.measured.own_seconds()], dtype=torch.float64, device=state.groups.device)
        self.work.measured = None
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
        self.publisher.publish(result.step, values)
        for words in self.watch.look(work):
            self.events.write(result.step, "straggler", words)
            self.publisher.text(result.step, "straggler", words)

"""Numbers of every step to the sinks, and the health of memory layers from time to time."""

import torch.distributed as dist

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.metrics import catalogue
from ultramem_megatron.metrics.metric import Reading, Recorder, join_ranks
from ultramem_megatron.monitor.events import EventLog
from ultramem_megatron.monitor.layer_observer import LayerObserver
from ultramem_megatron.monitor.message_watch import MessageWatch
from ultramem_megatron.monitor.process import resident_bytes
from ultramem_megatron.monitor.publish import Publisher
from ultramem_megatron.monitor.throughput import Throughput
from ultramem_megatron.planning.model_size import count_parameters
from ultramem_megatron.training.hooks import Hook
from ultramem_megatron.training.state import StepResult, TrainState

TRAINING_FLOPS = 3  # forward, and twice as much backward


class ReportSteps(Hook):
    """Loss, norm, rates and speed, every step."""

    def __init__(self, publisher: Publisher, config: RunConfig) -> None:
        self.publisher = publisher
        self.throughput = Throughput(
            tokens_per_step=config.training.global_batch_size * config.model.seq_length,
            flops_per_token=TRAINING_FLOPS * count_parameters(config).flops_per_token,
        )

    def before_step(self, state: TrainState) -> None:
        self.throughput.start()

    def after_step(self, state: TrainState, result: StepResult) -> None:
        values = {
            catalogue.LOSS.name: result.loss,
            catalogue.GRADIENT_NORM.name: result.gradient_norm,
            catalogue.LEARNING_RATE.name: result.learning_rate,
            catalogue.CONSUMED_SAMPLES.name: state.consumed_samples,
            catalogue.CONSUMED_TOKENS.name: state.consumed_tokens,
            **self.throughput.finish(),
        }
        if result.value_learning_rate is not None:
            values[catalogue.VALUE_LEARNING_RATE.name] = result.value_learning_rate
        self.publisher.publish(result.step, values)


class ReportBadSteps(Hook):
    """Says which steps were skipped, and why."""

    def __init__(self, publisher: Publisher, events: EventLog) -> None:
        self.publisher, self.events = publisher, events

    def after_step(self, state: TrainState, result: StepResult) -> None:
        if result.bad:
            limit = state.config.resilience.max_bad_steps
            words = f"step {result.step}: {result.bad}; skipped, {state.guard.bad_steps} of at most {limit} bad steps"
            self.events.write(result.step, "bad_step", words)
            self.publisher.text(result.step, "bad step", words)
            self.publisher.publish(result.step, {catalogue.BAD_STEPS.name: state.guard.bad_steps})


class ReportMemory(Hook):
    """Every ``monitor.memory_interval`` steps: use, scores, outputs and traffic of each memory layer."""

    def __init__(self, publisher: Publisher, state: TrainState) -> None:
        """Attach an observer to each memory layer of this rank."""
        self.publisher = publisher
        self.recorder = Recorder()
        stage = state.groups.mcore.tp_dp_cp
        self.observers = [
            LayerObserver(layer, f"layer{index}", self.recorder, stage)
            for chunk in state.chunks
            for index, layer in chunk.memory.numbered_layers()
        ]
        self.watches = [
            MessageWatch(layer.tables, f"layer{index}", self.recorder, state.plan.predicted_messages)
            for chunk in state.chunks
            for index, layer in chunk.memory.numbered_layers()
        ]

    def before_step(self, state: TrainState) -> None:
        self.recorder.enabled = (state.step + 1) % state.config.monitor.memory_interval == 0
        if self.recorder.enabled:
            for watch in self.watches:
                watch.begin()

    def after_step(self, state: TrainState, result: StepResult) -> None:
        if not self.recorder.enabled:
            return
        self.recorder.record(catalogue.RESIDENT_BYTES, resident_bytes())
        for observer in self.observers:
            observer.report()
            self._record_prediction(state, observer.label)
        for watch in self.watches:
            watch.report(state.config.training.micro_batches(state.groups.data_ranks))
        drained: list[dict[str, Reading]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(drained, self.recorder.drain())
        self.publisher.publish(result.step, join_ranks(drained))

    def _record_prediction(self, state: TrainState, label: str) -> None:
        chosen = state.plan.chosen
        if chosen is not None:
            self.recorder.record(catalogue.PREDICTED_FORWARD_BYTES, chosen.forward_bytes, label)
            self.recorder.record(catalogue.PREDICTED_BACKWARD_BYTES, chosen.backward_bytes, label)

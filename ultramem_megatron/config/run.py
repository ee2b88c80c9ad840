"""``RunConfig``: the root of a run's settings, and the rules that join two sections."""

from dataclasses import dataclass, field

from ultramem_megatron.config.check import require_divides
from ultramem_megatron.config.checkpoint import CheckpointConfig
from ultramem_megatron.config.data import DataConfig
from ultramem_megatron.config.memory import MemoryConfig
from ultramem_megatron.config.model import ModelConfig
from ultramem_megatron.config.monitor import MonitorConfig
from ultramem_megatron.config.optimizer import OptimizerConfig
from ultramem_megatron.config.parallelism import ParallelismConfig
from ultramem_megatron.config.resilience import ResilienceConfig
from ultramem_megatron.config.training import TrainingConfig
from ultramem_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything a run is made from. Checked whole on construction; rules on the number of ranks are in
    ``check_world_size``, because a config does not know it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)

    def __post_init__(self) -> None:
        self._check_tensor_parallel()
        self._check_pipeline()
        self._check_spans()
        self._check_experts()
        self._check_table_step()

    def _check_tensor_parallel(self) -> None:
        tensor = self.parallelism.tensor
        for name in ("heads", "ffn_hidden", "seq_length"):
            require_divides("parallelism.tensor", tensor, f"model.{name}", getattr(self.model, name))
        require_divides("parallelism.tensor", tensor, "the padded vocabulary", self.model.padded_vocab_size)
        halo = self.memory.query_conv_kernel - 1
        if self.memory.span_list and tensor > 1 and self.model.seq_length // tensor < halo:
            raise ConfigError(
                f"memory.query_conv_kernel = {self.memory.query_conv_kernel} reaches back {halo} tokens, but "
                f"with parallelism.tensor = {tensor} a rank holds {self.model.seq_length // tensor} of each "
                "sequence; lower parallelism.tensor or the kernel"
            )

    def _check_pipeline(self) -> None:
        chunks = self.parallelism.pipeline * self.parallelism.virtual_pipeline
        require_divides("parallelism.pipeline * virtual_pipeline", chunks, "model.layers", self.model.layers)

    def _check_spans(self) -> None:
        for span in self.memory.span_list:
            if span.add > self.model.layers:
                raise ConfigError(
                    f"memory.spans: span {span} is out of range, the model has model.layers = "
                    f"{self.model.layers} blocks, counted from 1"
                )

    def _check_experts(self) -> None:
        tensor, expert, experts = self.parallelism.tensor, self.parallelism.expert, self.model.experts
        if experts == 0 and expert > 1:
            raise ConfigError(
                f"parallelism.expert = {expert} needs a model with experts, and model.experts = 0; set it to 1"
            )
        if experts == 0:
            return
        require_divides("parallelism.expert", expert, "model.experts", experts)
        require_divides("parallelism.tensor", tensor, "model.expert_ffn_hidden", self.model.expert_ffn_hidden)
        if tensor > 1 and not self.parallelism.sequence:
            raise ConfigError(
                f"parallelism.tensor = {tensor} with model.experts = {experts} needs sequence parallelism, or each "
                "tensor-parallel rank would send the same tokens; set parallelism.sequence=true"
            )
        if expert > 1 and self.memory.span_list:
            raise ConfigError(
                f"parallelism.expert = {expert} with memory.variant = {self.memory.variant}: value tables travel in "
                "Megatron's expert buffers, which serve one of the two; set parallelism.expert to 1"
            )

    def _check_table_step(self) -> None:
        if self.optimizer.own_table_step and not self.memory.span_list:
            raise ConfigError(
                f"{', '.join(self.optimizer.own_table_step)} is for value tables, and memory.variant = "
                f"{self.memory.variant} has none; leave it out, or choose a variant with memory layers"
            )

    def check_world_size(self, world_size: int) -> None:
        """Refuse a number of ranks that the degrees or the batch do not divide.

        Raises:
            ConfigError: With the numbers and the nearest that fit.
        """
        model_ranks = self.parallelism.tensor * self.parallelism.pipeline
        require_divides("parallelism.tensor * pipeline", model_ranks, "the number of ranks", world_size)
        data_ranks = world_size // model_ranks
        require_divides("parallelism.expert", self.parallelism.expert, "the data-parallel ranks", data_ranks)
        per_pass = data_ranks * self.training.micro_batch_size
        if self.training.global_batch_size % per_pass:
            below = self.training.global_batch_size // per_pass * per_pass
            nearest = sorted({max(below, per_pass), below + per_pass})
            raise ConfigError(
                f"training.global_batch_size = {self.training.global_batch_size} must be a multiple of "
                f"training.micro_batch_size = {self.training.micro_batch_size} times {data_ranks} data-parallel "
                f"ranks = {per_pass}; near it these are: {', '.join(map(str, nearest))}"
            )
        micro_batches = self.training.micro_batches(data_ranks)
        if self.parallelism.virtual_pipeline > 1 and micro_batches % self.parallelism.pipeline:
            raise ConfigError(
                f"{micro_batches} micro-batches must be a multiple of parallelism.pipeline = "
                f"{self.parallelism.pipeline} for the interleaved schedule; change training.global_batch_size"
            )
        self._check_memory_parallel(world_size // self.parallelism.pipeline)

    def _check_memory_parallel(self, stage_ranks: int) -> None:
        if self.memory.span_list and self.memory.parallel_size != "auto":
            require_divides(
                "memory.parallel_size",
                int(self.memory.parallel_size),
                "the ranks of one pipeline stage",
                stage_ranks,
            )

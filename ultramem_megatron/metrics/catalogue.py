"""Every metric of the project. To add one, see ``monitor/README.md``."""

from ultramem_megatron.metrics.metric import Metric, Reduction

LOSS = Metric(
    name="train/loss",
    unit="nats per token",
    reduction=Reduction.MEAN,
    help="Cross-entropy of the next token over the global batch, without the auxiliary loss.",
)
AUXILIARY_LOSS = Metric(
    name="train/auxiliary_loss",
    unit="nats per token",
    reduction=Reduction.MEAN,
    help="Penalty on the lesser singular values of the Tucker cores, weighted as it is added to the loss. It should "
    "fall to zero early: then one rank of each core dominates and the two-stage top-m is nearly exact.",
)
GRADIENT_NORM = Metric(
    name="train/gradient_norm",
    unit="L2 norm",
    reduction=Reduction.LAST,
    help="Norm of all gradients together, value tables included, before clipping. Spikes come before a loss spike.",
)
LEARNING_RATE = Metric(
    name="train/learning_rate",
    unit="per step",
    reduction=Reduction.LAST,
    help="Learning rate of the dense parameters in this step.",
)
VALUE_LEARNING_RATE = Metric(
    name="train/value_learning_rate",
    unit="per step",
    reduction=Reduction.LAST,
    help="Learning rate of the value tables: a multiple of the dense one that falls to 1.",
)
CONSUMED_SAMPLES = Metric(
    name="train/consumed_samples",
    unit="samples",
    reduction=Reduction.LAST,
    help="Training samples since the start of the run, over all ranks and restarts.",
)
CONSUMED_TOKENS = Metric(
    name="train/consumed_tokens",
    unit="tokens",
    reduction=Reduction.LAST,
    help="Training tokens since the start of the run, over all ranks and restarts.",
)
BAD_STEPS = Metric(
    name="train/bad_steps",
    unit="steps",
    reduction=Reduction.LAST,
    help="Steps since the start of the run whose loss or gradient norm was no finite number or whose loss was far off; "
    "they updated nothing. Reported when one occurs.",
)

VALIDATION_LOSS = Metric(
    name="validation/loss",
    unit="nats per token",
    reduction=Reduction.MEAN,
    help="Cross-entropy on held-out documents: one curve for each data source, and their mean without a label.",
)

TOKENS_PER_SECOND = Metric(
    name="throughput/tokens_per_second",
    unit="tokens/s",
    reduction=Reduction.LAST,
    help="Training tokens of all ranks per second, over the last steps; validation and checkpoints do not count.",
)
STEP_SECONDS = Metric(
    name="throughput/step_seconds",
    unit="seconds",
    reduction=Reduction.MAX,
    help="Wall time of this one step. A single high value is a hiccup; a new level is a slow node or link.",
)
MODEL_FLOPS_PER_SECOND = Metric(
    name="throughput/model_flops_per_second",
    unit="FLOP/s",
    reduction=Reduction.LAST,
    help="Arithmetic that the model needs (recomputation not counted) per second, all ranks together.",
)
SLOWEST_RANK_RATIO = Metric(
    name="throughput/slowest_rank_ratio",
    unit="ratio",
    reduction=Reduction.LAST,
    help="Own work of the slowest rank, to the median of the ranks of its pipeline stage. 1 is even; all wait for the "
    "slowest, so a new level slows every step: a GPU that throttles, a machine that does something else.",
)
SLOWEST_RANK_SECONDS = Metric(
    name="throughput/slowest_rank_seconds",
    unit="seconds",
    reduction=Reduction.LAST,
    help="That rank's own work in a step: its wall time less the time in which it waited for other ranks.",
)
SLOWEST_RANK = Metric(
    name="throughput/slowest_rank",
    unit="rank",
    reduction=Reduction.LAST,
    help="Which rank that was. Another one each time is noise; always the same one is a machine to look at, and "
    "resilience.straggler_ratio names it.",
)

SLOT_USAGE_FRACTION = Metric(
    name="memory/slot_usage_fraction",
    unit="fraction",
    reduction=Reduction.MEAN,
    help="Share of a table's rows read at least once since the last report; a fall means that the keys collapse.",
)
TOP1_SCORE = Metric(
    name="memory/top1_score",
    unit="score",
    reduction=Reduction.MEAN,
    help="Highest retrieval score of a token, averaged over tokens. Growth without end foretells divergence "
    "(UltraMem paper, Figure 10).",
)
MEAN_SCORE = Metric(
    name="memory/mean_score",
    unit="score",
    reduction=Reduction.MEAN,
    help="Mean retrieval score of the slots kept. Far below the top-1 score: a token reads few rows; close: many.",
)
OUTPUT_STD = Metric(
    name="memory/output_std",
    unit="standard deviation",
    reduction=Reduction.MEAN,
    help="Standard deviation of what a memory layer adds to the residual stream. Should stay flat late in training "
    "(UltraMem paper, Figure 10).",
)
SINGULAR_VALUE_RATIO = Metric(
    name="memory/singular_value_ratio",
    unit="ratio",
    reduction=Reduction.MEAN,
    help="Second singular value of the Tucker core over the first. The smaller, the closer the two-stage top-m "
    "comes to the exact one.",
)
OWNER_SKEW = Metric(
    name="memory/owner_skew",
    unit="ratio",
    reduction=Reduction.MAX,
    help="Requests that the busiest owner of a table's rows answered, over the mean of its owners; only where a table "
    "is split by rows. 1 is even; all wait for the busiest, so a rise slows every step.",
)
RESIDENT_BYTES = Metric(
    name="memory/resident_bytes",
    unit="bytes",
    reduction=Reduction.MAX,
    help="Host memory of the largest training process (resident set). A steady rise is a leak.",
)

FORWARD_BYTES = Metric(
    name="communication/forward_bytes",
    unit="bytes per micro-batch and rank",
    reduction=Reduction.MEAN,
    help="Payload that a rank sent for a memory layer in the forward pass, counted at the collectives.",
)
BACKWARD_BYTES = Metric(
    name="communication/backward_bytes",
    unit="bytes per micro-batch and rank",
    reduction=Reduction.MEAN,
    help="Payload that a rank sent for a memory layer in the backward pass, counted at the collectives.",
)
PREDICTED_FORWARD_BYTES = Metric(
    name="communication/predicted_forward_bytes",
    unit="bytes per micro-batch and rank",
    reduction=Reduction.MEAN,
    help="The planner's figure for the forward payload; a gap to the measured one is a planner that misjudges.",
)
PREDICTED_BACKWARD_BYTES = Metric(
    name="communication/predicted_backward_bytes",
    unit="bytes per micro-batch and rank",
    reduction=Reduction.MEAN,
    help="The planner's figure for the backward payload.",
)

STALL_SECONDS = Metric(
    name="checkpoint/stall_seconds",
    unit="seconds",
    reduction=Reduction.LAST,
    help="Time that training stood still for a checkpoint: all of the save, or, with checkpoint.async_save, the copy "
    "to host memory, what ranks agree on before and after, and the wait for a save before it that was still running.",
)
WRITE_SECONDS = Metric(
    name="checkpoint/write_seconds",
    unit="seconds",
    reduction=Reduction.LAST,
    help="Time to digest, write, flush and publish a checkpoint; beside training with checkpoint.async_save. Close to "
    "the time between two saves, they begin to wait for each other: save less often, or on faster storage.",
)
MESSAGE_BYTES = Metric(
    name="communication/message_bytes",
    unit="bytes per micro-batch and rank",
    reduction=Reduction.MEAN,
    help="Payload that a rank sent in one kind of a lookup's messages, such as forward.rows, in the reported step.",
)
MESSAGE_SECONDS = Metric(
    name="communication/message_seconds",
    unit="seconds per micro-batch",
    reduction=Reduction.MAX,
    help="From the beginning of such a collective to its end, on the slowest rank; the lateness of peers counts. Far "
    "above the prediction: a slow link or node, or a profile that is stale.",
)
MESSAGE_EXPOSED_SECONDS = Metric(
    name="communication/message_exposed_seconds",
    unit="seconds per micro-batch",
    reduction=Reduction.MAX,
    help="Part of it for which the slowest rank did nothing but wait; the rest was hidden behind dense blocks.",
)
PREDICTED_MESSAGE_BYTES = Metric(
    name="communication/predicted_message_bytes",
    unit="bytes per micro-batch and rank",
    reduction=Reduction.MEAN,
    help="The planner's figure for the payload of such messages, all rows being equally likely.",
)
PREDICTED_MESSAGE_SECONDS = Metric(
    name="communication/predicted_message_seconds",
    unit="seconds per micro-batch",
    reduction=Reduction.MEAN,
    help="The planner's figure for such a collective, on links that do nothing else.",
)

METRICS: tuple[Metric, ...] = (
    LOSS,
    AUXILIARY_LOSS,
    GRADIENT_NORM,
    LEARNING_RATE,
    VALUE_LEARNING_RATE,
    CONSUMED_SAMPLES,
    CONSUMED_TOKENS,
    BAD_STEPS,
    VALIDATION_LOSS,
    TOKENS_PER_SECOND,
    STEP_SECONDS,
    MODEL_FLOPS_PER_SECOND,
    SLOWEST_RANK_RATIO,
    SLOWEST_RANK_SECONDS,
    SLOWEST_RANK,
    SLOT_USAGE_FRACTION,
    TOP1_SCORE,
    MEAN_SCORE,
    OUTPUT_STD,
    SINGULAR_VALUE_RATIO,
    OWNER_SKEW,
    RESIDENT_BYTES,
    FORWARD_BYTES,
    BACKWARD_BYTES,
    PREDICTED_FORWARD_BYTES,
    PREDICTED_BACKWARD_BYTES,
    STALL_SECONDS,
    WRITE_SECONDS,
    MESSAGE_BYTES,
    MESSAGE_SECONDS,
    MESSAGE_EXPOSED_SECONDS,
    PREDICTED_MESSAGE_BYTES,
    PREDICTED_MESSAGE_SECONDS,
)


def find_metric(full_name: str) -> Metric | None:
    """The metric behind a name as sinks see it, with or without label; None for a name of someone else's."""
    name = "/".join(full_name.split("/")[:2])
    return next((metric for metric in METRICS if metric.name == name), None)


def catalogue_table() -> str:
    """All metrics as a Markdown table, for people."""
    rows = [f"| {metric.name} | {metric.unit} | {metric.help} |" for metric in METRICS]
    return "\n".join(["| metric | unit | meaning |", "| --- | --- | --- |", *rows])

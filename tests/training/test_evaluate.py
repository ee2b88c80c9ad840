"""Scores equal the slow way, token by token; results are what the scores say; the loss is that of training."""

import json
import math
import random
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ultramem_megatron.config.load import to_yaml
from ultramem_megatron.data.recall.task import Question
from ultramem_megatron.errors import DataError, UltraMemError
from ultramem_megatron.monitor.records import read_records
from ultramem_megatron.testing.distributed import run_distributed
from ultramem_megatron.testing.tiny import tiny_config

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="forked ranks need a machine without CUDA")

TREES = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple"]
SEQ_LENGTH = 32
TEXTS = [
    ("ash birch", " cedar elm"),
    ("ash birch", " maple"),
    ("ash bir", "ch cedar"),  # birch is one token, so the border lies inside it
    ("", "hazel fir"),
    ("larch 17?", " 3"),
    *((" ".join(TREES * 5), f" {tree}") for tree in TREES),  # longer than a sample
]


def train(run_dir: Path, folder: Path) -> None:
    from ultramem_megatron.planning.choose import choose_plan
    from ultramem_megatron.planning.cluster import local_cluster
    from ultramem_megatron.training.pretrain import pretrain

    config = tiny_config(
        *(f"data.folder={folder}", "data.synthetic=false", "model.vocab_size=300", "training.steps=3"),
        *("training.eval_interval=3", "training.eval_batches=2", "optimizer.learning_rate=0.01"),
    )
    pretrain(config, choose_plan(config, local_cluster(dist.get_world_size())), run_dir, torch.device("cpu"))


def score_both_ways(run_dir: Path) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    """(log-likelihood, tokens) of each text: as scored, and by one forward pass a token."""
    from ultramem_megatron.training.trained_model import TrainedModel, open_trained_model

    def slowly(model: TrainedModel, prompt: str, continuation: str) -> tuple[float, int]:
        alone, whole = model.tokenizer.encode(prompt), model.tokenizer.encode(prompt + continuation)
        border = 0
        while border < len(alone) and alone[border] == whole[border]:
            border += 1
        total = 0.0
        for place in range(border, len(whole)):
            # what the last token to be scored does not reach, no token sees
            first = max(0, len(whole) - SEQ_LENGTH)
            seen = [model.tokenizer.eod, *whole][first : place + 1]
            positions = torch.arange(len(seen)).unsqueeze(0)
            with torch.no_grad():
                logits = model.model(torch.tensor([seen]), positions, None)[0, -1]
            total += math.log(logits.double().softmax(0)[whole[place]])
        return total, len(whole) - border

    model = open_trained_model(run_dir, torch.device("cpu"))
    encode = model.tokenizer.encode
    assert encode("ash bir") != encode("ash birch")[: len(encode("ash bir"))], "else no token reaches over a border"
    scores = model.score(TEXTS)
    return [
        ((score.log_likelihood, score.tokens), slowly(model, *text)) for score, text in zip(scores, TEXTS, strict=True)
    ]


def evaluate_loss(run_dir: Path) -> dict[str, Any]:
    from ultramem_megatron.training.evaluate import evaluate

    evaluate(run_dir, ["loss"], torch.device("cpu"))
    return dict(json.loads((run_dir / "eval/loss.json").read_text()))


@pytest.fixture(scope="module")
def trained(megatron: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps on a folder of two small sources."""
    from ultramem_megatron.data.build import build
    from ultramem_megatron.data.tokenizer import make_tokenizer

    for module in ("ultramem_megatron.training.pretrain", "torch.utils.tensorboard"):
        import_module(module)  # once, before the forks
    root = tmp_path_factory.mktemp("evaluate")
    draw = random.Random(0)
    (root / "raw").mkdir()
    for source in ("leaves", "needles"):
        texts = [" ".join(draw.choices(TREES, k=40)) for _ in range(300)]
        lines = [json.dumps({"id": f"{source}/{number}", "text": text}) for number, text in enumerate(texts)]
        (root / "raw" / f"{source}.jsonl").write_text("\n".join(lines) + "\n")
    make_tokenizer(root / "raw", root / "out", 300)
    build(root / "raw", root / "out", workers=1)
    run_distributed(1, train, root / "run", root / "out")
    return root / "run"


@pytest.mark.slow
@needs_no_cuda
def test_scores_equal_one_token_at_a_time(trained: Path) -> None:
    (pairs,) = run_distributed(1, score_both_ways, trained)
    for (fast, tokens), (slow, slow_tokens) in pairs:
        assert tokens == slow_tokens > 0
        assert fast == pytest.approx(slow, abs=1e-4)
    counts = [tokens for (_, tokens), _ in pairs]
    assert counts[0] > counts[1], "two words and one"
    assert len({round(fast, 3) for (fast, _), _ in pairs}) > len(TREES), "scores tell texts apart"


@pytest.mark.slow
@needs_no_cuda
def test_loss_is_that_of_training(trained: Path) -> None:
    (result,) = run_distributed(1, evaluate_loss, trained)
    (last,) = [record for record in read_records(trained / "metrics.jsonl") if "validation/loss" in record]
    assert (result["step"], result["consumed_tokens"]) == (3, 3 * 4 * SEQ_LENGTH)
    assert list(result["source_losses"]) == ["leaves", "needles"]
    assert result["loss"] == pytest.approx(last["validation/loss"], rel=1e-6)
    for source, loss in result["source_losses"].items():
        (recorded,) = [value for name, value in last.items() if "validation" in name and source in name]
        assert loss == pytest.approx(recorded, rel=1e-6)
    assert len(set(result["source_losses"].values())) == 2


def test_what_is_missing_is_named(megatron: ModuleType, tmp_path: Path) -> None:
    from ultramem_megatron.training.evaluate import evaluate

    def refused(*names: str) -> str:
        with pytest.raises(UltraMemError) as error:
            evaluate(tmp_path, names, torch.device("cpu"))
        return str(error.value)

    assert re.search(r"--run-dir .* holds no config\.yaml; name the folder of a run$", refused("loss"))
    folder = tmp_path / "data"
    (tmp_path / "config.yaml").write_text(to_yaml(tiny_config("data.synthetic=false", f"data.folder={folder}")))
    remedy = f"make it with `ultramem data recall --task world --out {folder}`, and train on it"
    assert refused("loss", "world") == f"data folder {folder} has no task world ({folder}/tasks/world.jsonl); {remedy}"
    assert re.search(r"has no checkpoint yet; train it with `ultramem pretrain`$", refused("loss"))
    (tmp_path / "config.yaml").write_text(to_yaml(tiny_config()))
    assert "was trained on generated tokens (data.synthetic=true), which state no facts" in refused("loss")
    assert re.search(r'^"los" is no task; there are .* the nearest is "loss"$', refused("los"))


class Words:
    """A tokenizer of one token a character, with which nothing reaches over a border."""

    eod = 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]


def test_rows_keep_the_answer_and_cut_the_beginning(megatron: ModuleType) -> None:
    from ultramem_megatron.training.score_rows import make_rows

    whole, cut = make_rows(Words(), [("abc", "de"), ("abcdefgh", "ij")], seq_length=5)  # type: ignore[arg-type]
    assert (whole.tokens, whole.scored_from) == ([0, *map(ord, "abcde")], 4)
    assert (cut.tokens, cut.scored_from) == ([*map(ord, "efghij")], 4)
    with pytest.raises(DataError, match=r'"bcdefg" has 6 tokens, and the run was trained with model\.seq_length = 5'):
        make_rows(Words(), [("a", "bcdefg")], seq_length=5)  # type: ignore[arg-type]


def test_batches_hold_all_rows_within_the_limit(megatron: ModuleType) -> None:
    from ultramem_megatron.training.score_rows import BATCH_TOKENS, Row, batches

    lengths = [random.Random(0).randint(1, 400) for _ in range(300)] + [BATCH_TOKENS + 5]
    rows = [Row(number, [1] * length, 1) for number, length in enumerate(lengths)]
    made = list(batches(rows))
    assert sorted(row.number for batch in made for row in batch) == list(range(len(rows)))
    padded = [len(batch) * max(len(row.tokens) for row in batch) for batch in made]
    assert max(padded[:-1]) <= BATCH_TOKENS < padded[-1]
    assert sum(padded) < 1.1 * sum(lengths)


def test_what_the_scores_say(megatron: ModuleType) -> None:
    from ultramem_megatron.training.evaluate import ask
    from ultramem_megatron.training.score_rows import Score

    questions = [
        Question(id="q/0", kind="k", prompt="p", choices=(" a", " b", " c", " dddddddd"), answer=1),
        Question(id="q/1", kind="k", prompt="p", choices=(" a", " b", " c", " dddddddd"), answer=3),
        Question(id="q/2", kind="k", prompt="p", choices=(" a", " b", " c", " d"), answer=2),
    ]
    likelihoods = [-2.0, -1.0, -3.0, -9.0, -2.0, -3.0, -4.0, -4.5, -1.0, -2.0, -3.0, -4.0]
    scores = [Score(value, 1 + (number == 7)) for number, value in enumerate(likelihoods)]
    model: Any = SimpleNamespace(
        score=lambda texts, progress: scores, manifest=SimpleNamespace(step=7, consumed_tokens=70)
    )
    result = ask(model, "phonebook", questions)
    assert (result.task, result.step, result.consumed_tokens, result.questions) == ("phonebook", 7, 70, 3)
    assert result.accuracy == pytest.approx(1 / 3)
    assert result.standard_error == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))
    # over its 9 bytes the long answer of the second question is the likeliest
    assert result.normalised_accuracy == pytest.approx(2 / 3)
    assert result.nats == pytest.approx((1.0 + 4.5 + 3.0) / 4)
    assert result.chance == 0.25

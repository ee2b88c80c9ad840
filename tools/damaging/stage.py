"""A run that has stopped half-way and the data that it reads, and another of each; copied afresh for every case."""

import json
import random
import shutil
from pathlib import Path

from damaging.calls import call
from ultramem_megatron.config.load import parse_override, resolve, to_yaml
from ultramem_megatron.testing.tiny import TINY

RUN, DATA, CONFIG = "run", "data", "tiny.yaml"
CASE, SCRATCH = "case", "scratch"
OURS, FOREIGN = "ours", "foreign"
LIMIT_SECONDS = 120.0
VOCABULARY = 320
WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "spruce", "yew")
SETTINGS = (
    f"model.vocab_size={VOCABULARY}",
    "data.synthetic=false",
    f"data.folder={DATA}",
    *("optimizer.learning_rate=0.03", "optimizer.warmup_fraction=0"),  # so that each step gives another text
    *("training.eval_interval=4", "training.eval_batches=1", "checkpoint.interval=2", "checkpoint.keep=2"),
)
"""On top of the tiny run of the tests: steps 2 and 4 are saved, then it stops."""


class Stage:
    """The folder in which all happens. What is complete there is used again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.case, self.scratch = folder, folder / CASE, folder / SCRATCH

    def prepare(self, *, foreign: bool = True) -> None:
        """Train what is to be damaged and, if ``foreign``, what is put in its place."""
        for name, seed in ((OURS, 1), (FOREIGN, 2))[: 1 + foreign]:
            if not (self.folder / name).is_dir():
                self._train(seed)
                self.case.rename(self.folder / name)

    def set_up(self) -> Path:
        """The undamaged run and data, in the folder of the case, whatever was there."""
        for folder in (self.case, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / OURS, self.case)
        return self.case

    def _train(self, seed: int) -> None:
        shutil.rmtree(self.case, ignore_errors=True)
        _write_corpora(self.case / "raw", seed)
        # folders as a user names them, from where the program is started
        config = resolve([("tiny", TINY), *map(parse_override, (*SETTINGS, f"training.seed={seed}"))])
        (self.case / CONFIG).write_text(to_yaml(config))
        for arguments in (
            ("data", "tokenizer", "--raw", "raw", "--out", DATA, "--vocab-size", str(VOCABULARY)),
            ("data", "build", "--raw", "raw", "--out", DATA, "--workers", "1"),
            ("data", "recall", "--task", "phonebook", "--facts", "8", "--raw", "raw", "--out", DATA, "--workers", "1"),
            ("pretrain", CONFIG, "training.stop_after=4", "--run-dir", RUN),
        ):
            ended = call(list(arguments), self.scratch, LIMIT_SECONDS, folder=self.case)
            if ended.status not in (0, 75):
                raise RuntimeError(f"`ultramem {' '.join(arguments)}` ended with {ended.status}: {ended.err}")


def _write_corpora(raw: Path, seed: int) -> None:
    raw.mkdir(parents=True)
    draw = random.Random(seed)
    for name, documents in (("alpha", 300), ("beta", 200 + 10 * seed)):
        texts = (" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) for _ in range(documents))
        lines = (json.dumps({"id": f"{name}/{number}", "text": text}) for number, text in enumerate(texts))
        (raw / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))

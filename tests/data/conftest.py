"""A small data folder, built once: two sources, 300 tokens of vocabulary."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramem_megatron.config.load import resolve
from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.data.build import build
from ultramem_megatron.data.tokenizer import make_tokenizer

WORDS = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "spruce", "yew"]
VOCAB_SIZE = 300
SEQ_LENGTH = 32


def _write_corpus(raw: Path, name: str, documents: int, seed: int = 0) -> Path:
    """``raw/name.jsonl`` with documents of 20 to 60 random words."""
    random_words = random.Random(f"{name} {seed}")
    raw.mkdir(parents=True, exist_ok=True)
    path = raw / f"{name}.jsonl"
    lines = []
    for number in range(documents):
        text = " ".join(random_words.choices(WORDS, k=random_words.randint(20, 60)))
        lines.append(json.dumps({"id": f"{name}/{number}", "text": f"{name} {number}: {text}"}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def write_corpus() -> Callable[..., Path]:
    """``write_corpus(raw, name, documents, seed=0)``."""
    return _write_corpus


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write here; take ``data_folder`` for that."""
    root = tmp_path_factory.mktemp("data")
    _write_corpus(root / "raw", "alpha", 600)
    _write_corpus(root / "raw", "beta", 300)
    make_tokenizer(root / "raw", root / "out", VOCAB_SIZE)
    build(root / "raw", root / "out", workers=1)
    return root / "out"


@pytest.fixture
def data_folder(built_folder: Path, tmp_path: Path) -> Path:
    """A copy of the built folder, free to be damaged; the text lies beside it in ``raw``."""
    shutil.copytree(built_folder.parent / "raw", tmp_path / "raw")
    return Path(shutil.copytree(built_folder, tmp_path / "out"))


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """``make_config(folder, training={...}, ...)`` with a model that fits the small folder."""

    def make(folder: Path, **sections: dict[str, object]) -> RunConfig:
        sections.setdefault("model", {})
        sections.setdefault("data", {})
        defaults = {
            "model": {"seq_length": SEQ_LENGTH, "vocab_size": VOCAB_SIZE},
            "data": {"folder": str(folder)},
        }
        return resolve([("defaults", defaults), ("test", sections)])

    return make

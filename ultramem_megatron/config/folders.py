"""The settings that name folders: ``~`` is the home folder, and what is saved with a run holds from any folder."""

import dataclasses
import os
from pathlib import Path

from ultramem_megatron.config.run import RunConfig
from ultramem_megatron.errors import ConfigError


def with_home(config: RunConfig) -> RunConfig:
    """``~`` and ``~name`` at the beginning of a folder, replaced.

    Raises:
        ConfigError: Nobody of that name has a home folder here.
    """
    data = dataclasses.replace(config.data, folder=_expand("data.folder", config.data.folder))
    checkpoint = dataclasses.replace(config.checkpoint, load=_expand("checkpoint.load", config.checkpoint.load))
    return dataclasses.replace(config, data=data, checkpoint=checkpoint)


def with_whole_paths(config: RunConfig) -> RunConfig:
    """Relative folders, which begin where the command was given, as absolute ones. Those that are not used stay."""
    data, checkpoint = config.data, config.checkpoint
    if not data.synthetic:
        data = dataclasses.replace(data, folder=str(Path.cwd() / data.folder))
    if checkpoint.load:
        checkpoint = dataclasses.replace(checkpoint, load=str(Path.cwd() / checkpoint.load))
    return dataclasses.replace(config, data=data, checkpoint=checkpoint)


def found_for(config: RunConfig, run_dir: Path) -> RunConfig:
    """The config of a run whose ``data.folder`` was saved as relative, as older versions did: where the run was started
    is not known, but mostly the run folder lies below it. Without such a folder the config as it is."""
    folder = config.data.folder
    if config.data.synthetic or Path(folder).is_absolute():
        return config
    places = (parent / folder for parent in run_dir.absolute().parents)
    found = next((str(place) for place in places if place.is_dir()), folder)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, folder=found))


def _expand(path: str, folder: str) -> str:
    if not folder.startswith("~"):
        return folder
    expanded = os.path.expanduser(folder)  # noqa: PTH111  # Path would turn ~/./x into another text
    if expanded.startswith("~"):
        raise ConfigError(f"{path} = {folder} begins with ~, and that home folder is not known; write the whole path")
    return expanded

"""Files of cluster profiles: YAML or JSON, those that ship with the package and the user's own. What is wrong with one
is said with file, path, value, rule and remedy."""

import difflib
import json
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ultramem_megatron.config.yaml_text import read_yaml
from ultramem_megatron.errors import PlanError, shown
from ultramem_megatron.files import read_bounded, read_json, write_text
from ultramem_megatron.planning.profile import ClusterProfile, Collective, Level, RowEfficiency, numbers_of

BUILT_IN = ("dgx-a100-80g", "dgx-a100-40g", "hgx-h100", "hgx-h200", "cpu-loopback")
MOST_BYTES = 16 * 2**20
"""Of a file; a calibrated profile has some hundred KiB."""
MOST_SHOWN = 80
"""Characters of a text that cannot be, in an error."""
SUFFIXES = (".yaml", ".yml", ".json")
_REMEDY = "mend it, or measure the cluster anew with `ultramem calibrate`"


@lru_cache  # frozen, and asked for by every cluster
def built_in_profile(name: str) -> ClusterProfile:
    """One of ``BUILT_IN``."""
    file = resources.files("ultramem_megatron.planning") / "clusters" / f"{name}.yaml"
    return parse_profile(file.read_text(), f"the built-in profile {name}")


def load_profile(path: Path) -> ClusterProfile:
    """Read a profile.

    Raises:
        PlanError: The file cannot be read, or what it holds is no profile.
    """
    try:
        text = read_bounded(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise PlanError(f"cluster profile {path} cannot be read ({error}); {_REMEDY}") from None
    return parse_profile(text, str(path))


def save_profile(profile: ClusterProfile, path: Path) -> None:
    """Write a profile as JSON; the folder is made when missing."""
    content = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def parse_profile(text: str, origin: str) -> ClusterProfile:
    """A profile from YAML, of which JSON is a part.

    Args:
        text: The document.
        origin: Named in errors.

    Raises:
        PlanError: It is no YAML, has an unknown key, lacks one, or holds a number that cannot be.
    """
    try:
        # a calibrated profile is JSON with thousands of points, for which YAML is slow
        content = read_json(text) if text.lstrip().startswith("{") else read_yaml(text)
    except ValueError as error:
        raise PlanError(f"{origin} is neither YAML nor JSON ({error}); {_REMEDY}") from None
    if not isinstance(content, dict) or content.get("schema") != "ultramem-cluster":
        raise PlanError(f'{origin} is no cluster profile: "schema" should be "ultramem-cluster"; name another file')
    try:
        profile = ClusterProfile.model_validate(content)
    except ValidationError as error:
        raise PlanError(f"{origin}: {_first_fault(error)}; {_REMEDY}") from None
    fault = _fault_of_order(profile) or _fault_of_sources(profile) or _fault_of_memory(profile)
    if fault:
        raise PlanError(f"{origin}: {fault}; {_REMEDY}")
    return profile


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(first["loc"][:-1]), n=1, cutoff=0.0)
        return f"{where} is not a key of a profile" + (f'; the nearest is "{near[0]}"' if near else "")
    rule = first["msg"][0].lower() + first["msg"][1:]
    value = first["input"]
    written = value if isinstance(value, str) and len(value) <= MOST_SHOWN else shown(value)
    return f"{where} = {written} cannot be: {rule}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at ``location``."""
    section: Any = ClusterProfile
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        parts = [annotation, *get_args(annotation)]
        records = [one for one in parts if isinstance(one, type) and issubclass(one, BaseModel)]
        if not records:
            return []
        section = records[0]
    return list(section.model_fields)


def _fault_of_order(profile: ClusterProfile) -> str:
    """Time may not fall with size, nor may knots and groups be out of order."""
    for name in ("gather", "scatter", "pool_forward", "pool_backward"):
        efficiency: RowEfficiency | None = getattr(profile, name)
        if efficiency is not None and not _ascending([width for width, _ in efficiency.knots]):
            return f"{name}.knots must have ascending widths"
    for level in Level:
        for collective in Collective:
            path = f"{level}.{collective}.curves"
            curves = profile.level(level).of(collective).curves
            if not _ascending([curve.ranks for curve in curves]):
                return f"{path} must have ascending ranks, one curve for each"
            for index, curve in enumerate(curves):
                sizes, times = [b for b, _ in curve.knots], [curve.latency_seconds, *(s for _, s in curve.knots)]
                if not _ascending(sizes) or any(later < earlier for earlier, later in pairwise(times)):
                    return f"{path}.{index}.knots must ascend in bytes, and not fall in seconds from latency_seconds on"
    return ""


def _ascending(values: list[float] | list[int]) -> bool:
    return all(before < after for before, after in pairwise(values))


def _fault_of_sources(profile: ClusterProfile) -> str:
    known, levels = numbers_of(profile), [level.value for level in Level]
    for path in known:
        parents = {path, path.rpartition(".")[0]}
        if not parents & profile.sources.keys():
            return f"sources has no entry for {path}; every number needs its source and trust"
    for path in profile.sources:
        if path not in known and path not in levels:
            near = difflib.get_close_matches(path, [*known, *levels], n=1, cutoff=0.0)
            return f'sources.{path} belongs to no number; the nearest is "{near[0]}"'
    return ""


def _fault_of_memory(profile: ClusterProfile) -> str:
    if profile.reserve_bytes < profile.memory_bytes:
        return ""
    return f"reserve_bytes = {profile.reserve_bytes} leaves nothing of memory_bytes = {profile.memory_bytes}"

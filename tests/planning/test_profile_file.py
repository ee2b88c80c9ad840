"""Files of profiles: there and back, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.profile import ClusterProfile, Fit, FitPoint
from ultramem_megatron.planning.profile_file import built_in_profile, load_profile, parse_profile, save_profile


@pytest.fixture
def profile() -> ClusterProfile:
    return built_in_profile("dgx-a100-80g")


def changed(profile: ClusterProfile, path: str, value: Any) -> str:
    """The document with one value replaced; ``None`` takes the key out."""
    content = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    *parents, last = path.split(".")
    section: Any = content
    for name in parents:
        section = section[int(name) if name.isdecimal() else name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return json.dumps(content)


def test_there_and_back_with_a_fit(profile: ClusterProfile, tmp_path: Path) -> None:
    point = FitPoint(path="node.all_gather", ranks=4, num_bytes=1024, seconds=1e-4, held_out=True)
    fit = Fit(
        date="2026-11-23", fingerprint={"torch": "2.13.0", "ranks": 8}, error_fractions={"gather": 0.1}, points=(point,)
    )
    measured = profile.model_copy(update={"fit": fit})
    save_profile(measured, tmp_path / "new" / "mine.json")
    assert load_profile(tmp_path / "new" / "mine.json") == measured


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "launch_seconds",
            -1,
            "mine: launch_seconds = -1 cannot be: input should be greater than or equal to 0; mend it",
        ),
        ("memory_bytes_per_second", None, "mine: memory_bytes_per_second is missing; mend it"),
        ("memory_bytes", 0, "memory_bytes = 0 cannot be: input should be greater than 0"),
        ("overlap_fraction", 1.5, "overlap_fraction = 1.5 cannot be: input should be less than or equal to 1"),
        (
            "node.all_gather.curves.0.bytes_per_second",
            "fast",
            "node.all_gather.curves.0.bytes_per_second = fast cannot be: input should be a valid number",
        ),
        ("node.all_gather.curves", [], "node.all_gather.curves = [] cannot be"),
        ("node.all_gathr", 1, 'node.all_gathr is not a key of a profile; the nearest is "all_gather"'),
        ("nic_per_node", 1, 'nic_per_node is not a key of a profile; the nearest is "nics_per_node"'),
        ("sources.gather", None, "sources has no entry for gather; every number needs its source"),
        (
            "sources.gahter",
            {"trust": "assumed", "source": "x"},
            'sources.gahter belongs to no number; the nearest is "gather"',
        ),
        ("sources.gather.trust", "hearsay", "sources.gather.trust = hearsay cannot be"),
        ("gather.knots", [[64, 0.5], [32, 0.6]], "gather.knots must have ascending widths"),
        (
            "network.all_to_all.curves.0.knots",
            [[1024, 1e-9]],
            "network.all_to_all.curves.0.knots must ascend in bytes, and not fall in seconds",
        ),
        ("reserve_bytes", 2**40, "leaves nothing of memory_bytes"),
        ("version", 2, "version = 2 cannot be"),
        ("schema", "other", 'mine is no cluster profile: "schema" should be "ultramem-cluster"'),
    ],
)
def test_what_cannot_be_is_refused_with_path_value_rule_and_remedy(
    profile: ClusterProfile, path: str, value: Any, message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        parse_profile(changed(profile, path, value), "mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    for name, message in (("broken.yaml", "is neither YAML nor JSON"), ("none.json", "cannot be read")):
        with pytest.raises(PlanError, match=message):
            load_profile(tmp_path / name)

"""``ultramem volume`` and ``ultramem sweep``: the paper's numbers, a picture, maps."""

import csv
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ultramem_launch.verbs.plan import plan
from ultramem_launch.verbs.sweep import sweep
from ultramem_launch.verbs.volume import volume
from ultramem_megatron.errors import PlanError
from ultramem_megatron.units import MIB


@pytest.fixture
def app() -> typer.Typer:
    verbs = typer.Typer()
    for verb in (plan, volume, sweep):
        verbs.command()(verb)
    return verbs


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def volumes(app: typer.Typer, **options: int) -> dict[str, float]:
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    document: dict[str, float] = json.loads(run(app, "volume", *flags, "--json"))
    return document


def test_the_papers_example(app: typer.Typer) -> None:
    found = volumes(app, tokens=4096, top_m=84, value_dim=1024, ranks=64)
    assert list(found) == ["number_wise_bytes", "dimension_wise_bytes", "break_even_value_dim", "break_even_ranks"]
    assert round(found["number_wise_bytes"] / MIB, 2) == 662.79
    assert round(found["dimension_wise_bytes"] / MIB, 2) == 131.91
    assert (round(found["break_even_value_dim"], 1), round(found["break_even_ranks"])) == (192.3, 338)
    extended = volumes(app, tokens=4096, top_m=84, value_dim=1024, ranks=64, expansion=4, cores=2)
    assert round(extended["dimension_wise_bytes"] / MIB, 2) == 196.88
    assert round(extended["break_even_value_dim"], 1) == 266.7


@pytest.mark.parametrize(("value_dim", "top_m", "ranks"), [(512, 32, 166), (768, 70, 253), (1024, 84, 338)])
def test_break_even_ranks_of_the_papers_models(app: typer.Typer, value_dim: int, top_m: int, ranks: int) -> None:
    assert round(volumes(app, top_m=top_m, value_dim=value_dim)["break_even_ranks"]) == ranks


def test_no_break_even_is_null(app: typer.Typer) -> None:
    assert volumes(app, top_m=1)["break_even_value_dim"] is None
    assert "Number-wise sends less at every width." in " ".join(run(app, "volume", "--top-m", "1").split())


def test_figure_9_as_numbers_and_as_a_picture(app: typer.Typer, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "figure9.png"
    found = json.loads(run(app, "volume", "--figure9", str(picture), "--json"))["figure9"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = [4.1, 10.3, 22.7, 47.5, 97.0, 196.1, 394.3, 790.7, 1583.5, 3169.0]
    assert [round(width, 1) for width in found["break_even_value_dim"]["32"].values()] == printed
    assert [round(ranks) for ranks in found["break_even_ranks"].values()] == [166, 253, 338]
    ratios = {
        (p["ranks"], p["value_dim"]): p["seconds_ratio"] for p in found["time_map"]["number_wise_over_dimension_wise"]
    }
    # across nodes dimension-wise is faster by far; a rank with one column of each row is not
    assert ratios[32, 1024] > 4 and ratios[1024, 1024] < 1


def test_a_map_as_text_json_and_csv(app: typer.Typer, tmp_path: Path) -> None:
    arguments = ("sweep", "ultramem-1.6b-x12", "--nodes", "8,512", "--tokens", "1024", "--csv", str(tmp_path / "m.csv"))
    rows = json.loads(run(app, *arguments, "--json"))["rows"]
    assert [(row["nodes"], row["ranks"], row["tokens"]) for row in rows] == [(8, 64, 1024), (512, 4096, 1024)]
    with (tmp_path / "m.csv").open() as file:
        assert [row["strategy"] for row in csv.DictReader(file)] == [row["strategy"] for row in rows]
    text = run(app, *arguments)
    assert "dimension_wise" in text and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("volume", "--ranks", "0"), "--ranks = 0 cannot be; it must be at least 1"),
        (("volume", "--value-dim", "-3"), "--value-dim = -3 cannot be"),
        (("sweep", "quickstart", "--nodes", "many"), '--nodes = "many" is not a list of numbers'),
        (("sweep", "quickstart", "--top-m", "0"), "--top-m holds 0"),
        (("plan", "quickstart", "--cluster", "dgx-a100-80:2"), 'the nearest is "dgx-a100-80g"'),
        (("plan", "quickstart", "--cluster", "hgx-h200:0"), "has 0 nodes"),
        (("plan", "quickstart", "--model", "luck"), "--model luck is not one of time, bytes"),
        (("plan", "quickstart", "--skew", "-1"), "a skew of -1 cannot be"),
    ],
)
def test_bad_input_is_one_paragraph(app: typer.Typer, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_document_has_what_programs_read(app: typer.Typer) -> None:
    found = json.loads(run(app, "plan", "ultramem-1.6b-x12", "--cluster", "dgx-a100-80g:8", "--json"))
    assert {"chosen", "candidates", "verdict_by_bytes", "verdict_by_time"} <= found.keys()
    needed = {"strategy", "P", "placement", "forward_bytes", "backward_bytes", "forward_seconds", "backward_seconds"}
    for candidate in (found["chosen"], *found["candidates"]):
        assert needed | {"hbm_bytes", "feasible", "reason"} <= candidate.keys()
    assert found["chosen"] == found["candidates"][0]
    assert any(not candidate["feasible"] and candidate["reason"] for candidate in found["candidates"])


def test_a_cluster_that_is_too_small_names_gib_and_remedies(app: typer.Typer) -> None:
    with pytest.raises(PlanError) as caught:
        run(app, "plan", "ultramem-1.6b-x12", "--cluster", "dgx-a100-40g:1")
    text = str(caught.value)
    assert "GiB more than the 36.00 GiB usable" in text
    assert "Settings that were tried, most effective first: " in text
    assert "training.recompute=full" in text and ("fits" in text or "not enough alone" in text)

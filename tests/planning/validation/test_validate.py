"""Predictors judged on measurements whose times are made up."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ultramem_launch.__main__ import app
from ultramem_megatron.config.memory import PartitionName
from ultramem_megatron.errors import PlanError
from ultramem_megatron.planning.calibration.fit import Machine, fit_profile
from ultramem_megatron.planning.profile_file import built_in_profile
from ultramem_megatron.planning.validation.noise import noise_floor
from ultramem_megatron.planning.validation.predictors import Prediction, Predictor, always, circumstances, predictors
from ultramem_megatron.planning.validation.report import table
from ultramem_megatron.planning.validation.results import BenchResults, BenchShape, Measurement, Seconds, Skew
from ultramem_megatron.planning.validation.validate import score_all
from ultramem_megatron.testing.calibration_points import FINGERPRINT, machine_points

NUMBER, DIMENSION, POOLED = (
    PartitionName.NUMBER_WISE,
    PartitionName.DIMENSION_WISE,
    PartitionName.NUMBER_WISE_POOLED,
)


def measured(partition: PartitionName, tokens: int, seconds: float) -> Measurement:
    times = Seconds(median=seconds, low=seconds, high=seconds)
    shape = BenchShape(ranks=4, tokens=tokens, top_m=8, value_dim=64, num_rows=4096, element_bytes=4, skew=Skew.UNIFORM)
    return Measurement(
        partition=partition,
        shape=shape,
        repeats=3,
        forward=times,
        backward=times,
        total=times,
        phases={},
        forward_bytes=1.0,
        backward_bytes=1.0,
    )


RESULTS = [
    *(measured(NUMBER, 16, 1.0), measured(DIMENSION, 16, 2.0), measured(POOLED, 16, 3.0)),
    *(measured(NUMBER, 64, 6.0), measured(DIMENSION, 64, 4.0), measured(POOLED, 64, 5.0)),
]


def test_a_rule_pays_where_it_is_wrong() -> None:
    (score,) = score_all(RESULTS, [always(NUMBER)])
    assert (score.mean_regret_fraction, score.worst_regret_fraction) == (0.25, 0.5)
    assert (score.kendall_tau, score.mean_error_fraction, score.coverage_fraction) == (None, None, None)
    assert [choice.best for choice in score.choices] == [NUMBER, DIMENSION]


def test_a_model_that_knows_is_perfect() -> None:
    oracle = Predictor(
        "oracle", lambda one: Prediction(one.total.median, one.total.median, one.total.median), is_time=True
    )
    (score,) = score_all(RESULTS, [oracle])
    assert score.worst_regret_fraction == 0
    assert (score.kendall_tau, score.kendall_tau_within) == (1.0, 1.0)
    assert (score.mean_error_fraction, score.coverage_fraction) == (0.0, 1.0)


def test_tau_within_shapes_tells_a_model_of_sizes_from_one_of_strategies() -> None:
    sizes_alone = Predictor("tokens", lambda one: Prediction(float(one.shape.tokens)))
    (score,) = score_all(RESULTS, [sizes_alone])
    assert score.kendall_tau == pytest.approx(9 / (9 * 15) ** 0.5)  # the pairs of both shapes, of 15
    assert score.kendall_tau_within is None


def test_a_shape_whose_strategies_cost_the_same_says_nothing_of_their_order() -> None:
    level_once = Predictor("half", lambda one: Prediction(1.0 if one.shape.tokens == 16 else one.total.median))
    (score,) = score_all(RESULTS, [level_once])
    assert score.kendall_tau_within == 1.0


def test_bytes_and_constants_are_those_of_the_planner_and_of_torchrec() -> None:
    _, by_bytes, constants, *_ = predictors([built_in_profile("cpu-loopback")])
    number, dimension = RESULTS[:2]
    # number-wise without repeats: 3 of 4 picks elsewhere, a row number and a row each, forward; the row back
    picks, row_bytes = 16 * 8, 64 * 4
    sent = 0.75 * picks * (4 + 2 * row_bytes) + 8 * 3
    read = 3 * picks * row_bytes
    assert constants.predict(number).cost == pytest.approx(sent / (600 * 2**30) + read / (897 * 2**30))
    # dimension-wise: numbers and scores to 3 others, a quarter of 16 pooled vectors to each of them; and back
    pieces = 3 * 16 * 16 * 4
    assert by_bytes.predict(dimension).cost == 3 * picks * (4 + 4) + pieces + pieces + 3 * picks * 4


def test_the_noise_is_what_the_other_half_of_the_repeats_says() -> None:
    halves = ((1.0, 3.0), (2.0, 2.0)), ((4.0, 5.0), (8.0, 9.0))
    rivals = [
        [
            measured(name, 16, 1.0).model_copy(update={"halves": one})
            for name, one in zip((NUMBER, POOLED), pair, strict=True)
        ]
        for pair in halves
    ]
    floor = noise_floor(rivals)
    assert floor is not None
    # of the first shape the halves disagree: 3 against 2, and 2 against 1
    assert (floor.mean_regret_fraction, floor.worst_regret_fraction) == ((0.5 + 1.0) / 4, 1.0)
    profile = built_in_profile("cpu-loopback")
    results = BenchResults(measurements=(*rivals[0],))
    text = table(score_all(rivals[0], predictors([profile])), results, [profile])
    assert "mean regret of 75.0% in the other half" in text
    assert max(map(len, text.splitlines())) <= 120
    assert noise_floor([RESULTS]) is None  # files from before say nothing of it


def test_results_without_a_choice_are_refused() -> None:
    with pytest.raises(PlanError, match=r"no shape with two strategies.*without --partition"):
        score_all(RESULTS[:1], [always(NUMBER)])


def test_the_table_fits_the_page() -> None:
    profile = built_in_profile("cpu-loopback")
    results = BenchResults(measurements=tuple(RESULTS))
    text = table(score_all(RESULTS, predictors([profile])), results, [profile])
    assert max(map(len, text.splitlines())) <= 120
    assert "6 measurements of 2 lookups" in text
    for name in ("time model", "bytes", "TorchRec-style constants", "always number_wise", "always dimension_wise"):
        assert name in text


def test_lookups_of_another_machine_than_the_profiles_are_flagged() -> None:
    machine = Machine(name="here", ranks_per_node=4, memory_bytes=2**30)
    profile = fit_profile(machine_points(), machine, FINGERPRINT, built_in_profile("cpu-loopback"))
    same, other = BenchResults(fingerprints=(FINGERPRINT,)), FINGERPRINT.model_copy(update={"hardware": "8 cores"})
    assert circumstances(same, [profile]) == []
    (text,) = circumstances(same.model_copy(update={"fingerprints": (other,)}), [profile])
    assert "Profile here" in text and "(hardware 2 cores there, 8 cores here)" in text
    assert circumstances(same, [built_in_profile("cpu-loopback")]) == []  # never measured: nothing to compare


def test_the_verb_prints_json_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "bench.json", tmp_path / "plots" / "validation.png"
    BenchResults(measurements=tuple(RESULTS)).save(path)
    command = ["validate", str(path), "--profile", "cpu-loopback", "--json", "--plot", str(picture)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    scores = json.loads(found.stdout)["scores"]
    assert scores[0]["predictor"] == "time model"
    assert len(scores[0]["choices"]) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")

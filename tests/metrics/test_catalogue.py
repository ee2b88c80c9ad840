"""The list of metrics is whole and without doubles."""

from ultramem_megatron.metrics import catalogue
from ultramem_megatron.metrics.catalogue import METRICS, SLOT_USAGE_FRACTION, catalogue_table, find_metric
from ultramem_megatron.metrics.metric import Metric


def test_names_are_unique() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


def test_every_metric_of_the_file_is_in_the_list() -> None:
    assert [value for value in vars(catalogue).values() if isinstance(value, Metric)] == list(METRICS)


def test_every_metric_says_what_it_is() -> None:
    for metric in METRICS:
        assert metric.unit and metric.help.endswith("."), metric.name
        assert "|" not in metric.help, f"{metric.name}: the help stands in a Markdown table"


def test_a_full_name_leads_back_to_its_metric() -> None:
    assert find_metric("memory/slot_usage_fraction/layer3") is SLOT_USAGE_FRACTION
    assert find_metric("memory/slot_usage_fraction") is SLOT_USAGE_FRACTION
    assert find_metric("memory/slot_usage") is None


def test_the_table_has_a_line_for_each_metric() -> None:
    lines = catalogue_table().splitlines()
    assert len(lines) == 2 + len(METRICS)
    assert all(metric.name in line for metric, line in zip(METRICS, lines[2:], strict=True))

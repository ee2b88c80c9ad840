"""table.md: a row a recipe."""

from collections.abc import Callable

from ablation.estimates import Estimate, mean_and_sd, paired_difference
from ablation.results import RecipeResult, Results, RunResult

MILLION = 1e6


def make_table(results: Results, pictures: list[str]) -> str:
    """The page: how it was made, the table, what differs from a fair comparison, what failed, ``pictures``."""
    rows = _rows(results)
    columns = list(rows[0])
    lines = [
        f"# {len(results.recipes)} recipes, {len(results.seeds)} seeds",
        "",
        *_facts(results),
        "",
        f"| {' | '.join(columns)} |",
        f"| --- {'| ---: ' * (len(columns) - 1)}|",
        *(f"| {' | '.join(row.values())} |" for row in rows),
        "",
        _legend(results),
    ]
    if results.warnings:
        lines += ["", "Not at the baseline's compute:", "", *(f"- {warning}" for warning in results.warnings)]
    if results.problems:
        lines += ["", "Not in the means, or incomplete:", "", *(f"- {problem}" for problem in results.problems)]
    for picture in pictures:
        lines += ["", f"![{picture.partition('.')[0]}]({picture})"]
    return "\n".join(lines) + "\n"


def _facts(results: Results) -> list[str]:
    steps = {f"{recipe.size.tokens:,} ({recipe.size.steps:,} steps)" for recipe in results.recipes}
    return [
        f"- device: {results.device}",
        f"- date: {results.dates}",
        f"- versions: {results.versions}",
        f"- tokens per run: {' | '.join(sorted(steps))}",
        f"- seeds: {len(results.seeds)} ({', '.join(map(str, results.seeds))})",
        f"- command: `{results.command}`",
    ]


def _legend(results: Results) -> str:
    differences = "validation" if _has_validation(results) else "training"
    return (
        "Losses in nats per token; the training loss is the mean over the last tenth of the steps. Behind ± stands the "
        f"sample standard deviation over seeds. Differences are of the {differences} loss, seed by seed; behind ± "
        f"stands the standard error of their mean. The baseline is {results.baseline}. FLOPs are those of the forward "
        "pass; seconds are those of the training steps." + _chances(results)
    )


def _chances(results: Results) -> str:
    found = {
        task: answer["chance"]
        for recipe in results.recipes
        for run in recipe.runs
        for task, answer in run.tasks.items()
    }
    return "".join(f" Guessing gives {chance:.0%} in {task}." for task, chance in found.items())


def _rows(results: Results) -> list[dict[str, str]]:
    baseline = next(recipe for recipe in results.recipes if recipe.label == results.baseline)
    befores = [None, *results.recipes]
    return [
        {
            "recipe": recipe.label + _incomplete(recipe),
            **_size_cells(recipe, results),
            **_loss_cells(recipe, results),
            "Δ row before": _difference_cell(recipe, before, results),
            "Δ baseline": _difference_cell(recipe, None if recipe is baseline else baseline, results),
            **_task_cells(recipe, results),
            "seconds": _seconds(mean_and_sd(list(recipe.values(lambda run: run.seconds).values()))),
        }
        for before, recipe in zip(befores, results.recipes, strict=False)
    ]


def _incomplete(recipe: RecipeResult) -> str:
    trained = sum(run.trained for run in recipe.runs)
    return "" if trained == len(recipe.runs) else f" ({trained} of {len(recipe.runs)} seeds)"


def _size_cells(recipe: RecipeResult, results: Results) -> dict[str, str]:
    size = recipe.size
    cells = {"dense M": _significant(size.dense / MILLION), "tables M": _significant(size.tables / MILLION)}
    if any(one.size.experts for one in results.recipes):
        cells["experts M"] = _significant(size.experts / MILLION)
    return {**cells, "FLOPs/token M": _significant(size.flops_per_token / MILLION)}


def _loss_cells(recipe: RecipeResult, results: Results) -> dict[str, str]:
    def cell(values: dict[int, float]) -> str:
        return _loss(mean_and_sd(list(values.values())))

    cells = {"train loss": cell(recipe.values(lambda run: run.train_loss))}
    if _has_validation(results):
        cells["val loss"] = cell(recipe.values(lambda run: run.validation_loss))
    sources = sorted({name for one in results.recipes for run in one.runs for name in run.validation_loss_by_source})
    for source in sources if len(sources) > 1 else ():
        cells[f"val {source}"] = cell(recipe.values(_of_source(source)))
    return cells


def _task_cells(recipe: RecipeResult, results: Results) -> dict[str, str]:
    cells = {}
    for task in results.tasks:
        for key, show in (("accuracy", _accuracy), ("nats", _loss)):
            cells[f"{task} {key}"] = show(mean_and_sd(list(recipe.values(_of_task(task, key)).values())))
    return cells


def _of_source(name: str) -> Callable[[RunResult], float | None]:
    return lambda run: run.validation_loss_by_source.get(name)


def _of_task(task: str, key: str) -> Callable[[RunResult], float | None]:
    return lambda run: run.tasks.get(task, {}).get(key)


def _difference_cell(recipe: RecipeResult, other: RecipeResult | None, results: Results) -> str:
    if other is None:
        return ""

    def loss(run: RunResult) -> float | None:
        return run.validation_loss if _has_validation(results) else run.train_loss

    return _loss(paired_difference(recipe.values(loss), other.values(loss)), "+.4f")


def _has_validation(results: Results) -> bool:
    return any(recipe.values(lambda run: run.validation_loss) for recipe in results.recipes)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _loss(estimate: Estimate | None, form: str = ".4f") -> str:
    if estimate is None:
        return "-"
    spread = "" if estimate.spread is None else f" ± {estimate.spread:.4f}"
    return f"{estimate.mean:{form}}{spread}"


def _accuracy(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    spread = "" if estimate.spread is None else f" ± {100 * estimate.spread:.1f}"
    return f"{100 * estimate.mean:.1f}{spread} %"


def _seconds(estimate: Estimate | None) -> str:
    return "-" if estimate is None else _significant(estimate.mean)


def _significant(value: float) -> str:
    """Three digits, but no digit before the point is lost."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

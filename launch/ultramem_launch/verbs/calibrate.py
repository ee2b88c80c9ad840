"""``ultramem calibrate``: measure a machine, and write its cluster profile."""

import datetime
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from ultramem_megatron.errors import LaunchError


def calibrate(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The profile, JSON.")] = Path("profile.json"),
    local: Annotated[int, typer.Option("--local", metavar="N", min=0, help="Start N processes here.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A trial of some seconds; good for nothing else.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Of the profile; default: the file's.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="PROFILE", help="Where what is not measured comes from.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="FRACTION",
            help="Refuse a fit that misses held-out points by more on average; default 0.15, with --quick none.",
        ),
    ] = None,
    nccl_tests: Annotated[
        list[Path] | None,
        typer.Option("--nccl-tests", metavar="FILE", help="Output of nccl-tests; repeat. Nothing is measured then."),
    ] = None,
) -> None:
    """Measure collectives, row reads and products, and write the profile that `ultramem plan --cluster FILE` takes.

    Under torchrun or srun it measures the cluster, with --local N that many processes of this machine. A stopped
    measurement is continued by the same command; its points are in FILE.partial until the profile is written.

    With --nccl-tests nothing is measured: the collectives of --base are replaced by what the tests printed.

    Example: ultramem calibrate --local 4 --out here.json
    """
    from ultramem_launch.calibrate import RANK_IMPORTS, calibrate_rank
    from ultramem_launch.local import run_local_processes, ultramem
    from ultramem_launch.place import is_one_of_several, refuse_nested_launch
    from ultramem_megatron.files import check_can_write
    from ultramem_megatron.planning.calibration.fit import MAX_ERROR_FRACTION

    if not is_one_of_several():  # ranks: rank 0 looks, and tells the others
        check_can_write(out)
    title = name or out.stem
    allowed = max_error
    if allowed is None:
        allowed = math.inf if quick else MAX_ERROR_FRACTION
    if nccl_tests:
        _import(nccl_tests, out, title, base, allowed)
    elif is_one_of_several() or not local:
        if local:
            refuse_nested_launch(local)
        calibrate_rank(out, title, base, quick=quick, max_error_fraction=allowed)
    else:
        arguments = ["calibrate", "--out", str(out), "--name", title, "--max-error", str(allowed)]
        arguments += ["--quick"] if quick else []
        arguments += ["--base", base] if base else []
        status = run_local_processes(local, arguments, ultramem(RANK_IMPORTS))
        if status:
            sys.exit(status)
    if not is_one_of_several():
        _report(out)


def _import(files: list[Path], out: Path, name: str, base: str | None, max_error: float) -> None:
    from ultramem_megatron.planning.calibration.fit import fit_imported
    from ultramem_megatron.planning.calibration.nccl_tests import read_nccl_tests
    from ultramem_megatron.planning.cluster import parse_cluster
    from ultramem_megatron.planning.profile_file import save_profile

    if base is None:
        raise LaunchError(
            "--nccl-tests tells of collectives alone; name the profile that has the rest: --base dgx-a100-80g, or a "
            "file that `ultramem calibrate` wrote"
        )
    points = [point for file in files for point in read_nccl_tests(file)]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    save_profile(fit_imported(points, parse_cluster(base).profile, name, today, max_error_fraction=max_error), out)


def _report(out: Path) -> None:
    from ultramem_megatron.planning.profile_file import load_profile

    profile = load_profile(out)
    assert profile.fit is not None
    typer.echo(f"{out}: profile {profile.name}, {len(profile.fit.points)} points; mean error of held-out points:")
    for path, error in profile.fit.error_fractions.items():
        typer.echo(f"  {path:24}{error:6.1%}")
    typer.echo(f"Plan with it: ultramem plan CONFIG --cluster {out}")

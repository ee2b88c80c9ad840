"""One task on each node before a run: ``python -m ultramem_launch.slurm.node_check --run-dir RUN_DIR``."""

import argparse
import os
from pathlib import Path

from ultramem_launch.ending import attempt_of_this_process
from ultramem_launch.slurm.folder import JobFolder
from ultramem_launch.slurm.needs import read_needs
from ultramem_launch.slurm.nodes import inspect_node, save_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    job = JobFolder(parser.parse_args().run_dir)
    folder, needs = job.preflight(attempt_of_this_process()), read_needs(job.job)
    facts = inspect_node(os.environ["SLURMD_NODENAME"], folder, needs.gpus_per_node, needs.free_bytes)
    save_facts(folder, facts)
    gpus = f"{len(facts.gpus)} GPUs, " if needs.gpus_per_node else ""
    print(f"{facts.node}: {gpus}{', '.join(f'{name} {version}' for name, version in facts.versions.items())}")


if __name__ == "__main__":
    main()

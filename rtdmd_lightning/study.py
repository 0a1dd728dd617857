"""Compare variants of a run: `rtdmd study --study configs/compare/cold_start.yaml`.

A study is a table of variants, each trained with several seeds at a small budget, each run in a process of its own, and as many
at a time as the study says. Interrupted, the same command goes on: finished runs are kept, an interrupted one continues from
its last checkpoint. SIGTERM ends the runs under way as it ends one by itself. At the end: a table (Markdown), the numbers with
every learning curve (JSON), and a plot.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("study")

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rtdmd_lightning.studies.children import Children
from rtdmd_lightning.studies.curves import SECONDS, Curve, Runs, markdown_table, plot, summarise
from rtdmd_lightning.studies.study import Run, Study, grid, load_study, write_json
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import UserError, readable_errors


def compare(study: Path) -> None:
    """Train what is not yet trained, then write and print the comparison.

    Args:
        study: a YAML file with the fields of `Study`, e.g. configs/compare/cold_start.yaml.
    """
    described = load_study(study)
    runs = grid(described)
    train([run for run in runs if not run.finished()], described)
    curves: dict[str, dict[int, Curve]] = {variant.name: {} for variant in described.variants}
    for run in runs:
        curves[run.variant][run.seed] = run.curve(described.metrics)
    write_results(described, study.stem, curves)


def train(waiting: list[Run], study: Study) -> None:
    """Execute the runs, `study.parallel` at a time. After a failure or an interruption no other run is begun."""
    environment = dict(os.environ)
    if study.parallel > 1:  # torch would give every process all cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // study.parallel))

    def execute(number: int, run: Run) -> None:
        title = f"run {number} of {len(waiting)}: {run.variant}, seed {run.seed}"
        print(f"{title} -> {run.folder}", flush=True)
        try:
            run.execute(children, environment)
            seconds = run.curve(study.metrics)[-1][SECONDS]
        except UserError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        print(f"{title}: {seconds:.0f} s of training", flush=True)

    with Children() as children, ThreadPoolExecutor(study.parallel) as pool:
        begun = [pool.submit(execute, number, run) for number, run in enumerate(waiting, start=1)]
    for future in begun:
        if not future.cancelled():
            future.result()


def write_results(study: Study, name: str, curves: Runs) -> None:
    summary = summarise(curves, study.metrics)
    table = markdown_table(summary, study.metrics)
    study.results.mkdir(parents=True, exist_ok=True)
    base = study.results / f"compare_{name}"
    machine = {"torch": version("torch"), "processor": platform.machine(), "cores": os.cpu_count()}
    results = {"machine": machine, "study": asdict(study), "summary": summary, "curves": curves}
    write_json(base.with_suffix(".json"), results)
    base.with_suffix(".md").write_text(table)
    plot(curves, study.metrics, base.with_suffix(".png"))
    print(f"\n{table}\ntable, numbers and plot: {base}.md, .json, .png")


if __name__ == "__main__":
    with readable_errors():
        run_command(compare, sys.argv[1:])

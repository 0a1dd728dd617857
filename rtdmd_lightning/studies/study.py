"""A study: variants of a run, each with several seeds, and what a run of them leaves behind (`compare.py` trains them)."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import STDOUT
from typing import Any

from jsonargparse import ArgumentParser

from rtdmd_lightning.studies.children import Children
from rtdmd_lightning.studies.curves import Curve, read_curve
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS, LAST
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import slug, write_text


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Args:
        name: in the table.
        options: overrides, as on the command line of `rtdmd_lightning.fit`.
        config: another config than the study's.
        seeds: others than the study's.
    """

    name: str
    options: list[str] = field(default_factory=list)
    config: str | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True)
class Study:
    """What is compared. Paths are relative to the folder that the command is run in.

    Args:
        config: of every run; it evaluates with `RewardEvalCallback`.
        max_steps: generator updates of every run, the budget.
        seeds: of the variants that name none.
        metrics: what the table and the plot show of `eval.jsonl`.
        runs: folder of the runs.
        results: folder of table, numbers and plot, named after the study's file.
        variants: the rows; the others are compared with the first.
        parallel: runs at the same time, which share the machine's cores; seconds are comparable within a study. Small models gain
            from it: a run of theirs uses a second core badly.
    """

    config: str
    max_steps: int
    seeds: list[int]
    metrics: list[str]
    runs: Path
    results: Path
    variants: list[Variant]
    parallel: int = 1

    def __post_init__(self) -> None:
        folders = [slug(variant.name) for variant in self.variants]
        if not folders or len(set(folders)) != len(folders):
            raise UserError(f"a study wants variants whose names differ, not {[v.name for v in self.variants]}")
        if not self.metrics:
            raise UserError("a study wants at least one of metrics, e.g. eval/shapes_strict")
        if self.parallel < 1:
            raise UserError(
                f"a study's parallel is the number of runs at the same time, at least 1, not {self.parallel}"
            )
        for variant in self.variants:
            if not self.seeds_of(variant) or len(set(self.seeds_of(variant))) != len(self.seeds_of(variant)):
                raise UserError(f"the variant {variant.name!r} wants seeds that differ, not {self.seeds_of(variant)}")

    def seeds_of(self, variant: Variant) -> list[int]:
        return self.seeds if variant.seeds is None else variant.seeds


@dataclass(frozen=True)
class Run:
    """One process's worth: a variant with a seed.

    `run.json` in its folder says what it was made from and whether it finished.
    """

    variant: str
    seed: int
    folder: Path
    config: str
    options: list[str]

    @property
    def arguments(self) -> list[str]:
        """Of `rtdmd_lightning.fit`."""
        return ["--config", self.config, *self.options, f"--seed_everything={self.seed}", f"--run_dir={self.folder}"]

    @property
    def recipe(self) -> dict[str, Any]:
        """What determines the result: a run made from another recipe is not this run."""
        return {"config": compose(Path(self.config)), "options": self.options, "seed": self.seed}

    def finished(self) -> bool:
        """Raises UserError where the folder holds a run, finished or not, of another recipe."""
        record = self.folder / "run.json"
        if not record.is_file():
            return False
        found = json.loads(record.read_text())
        if found["recipe"] != self.recipe:
            raise UserError(
                f"{self.folder} holds a run with another config or other options than the study now asks for; "
                "delete that folder to run it anew, or change the study's 'runs'"
            )
        return found["finished"]

    def execute(self, children: Children, environment: dict[str, str]) -> None:
        """Train, or go on training, in a process of its own; its output goes to `output.log`. Raises UserError if it fails."""
        record, log = self.folder / "run.json", self.folder / "output.log"
        last = self.folder / CHECKPOINTS / LAST
        if record.is_file() and not last.is_file():
            shutil.rmtree(self.folder)  # stopped before its first checkpoint: it begins again, among nothing of the old
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {"recipe": self.recipe, "finished": False})
        resume = [f"--ckpt_path={last}"] if last.is_file() else []
        with log.open("a") as output:
            command = [sys.executable, "-m", "rtdmd_lightning.fit", *self.arguments, *resume]
            status = children.run(command, stdout=output, stderr=STDOUT, env=environment)
        if status:
            said = log.read_text().rstrip().rpartition("\n")[2]
            raise UserError(f"{self.variant}, seed {self.seed}, failed with status {status} (see {log}): {said}")
        write_json(record, {"recipe": self.recipe, "finished": True})

    def curve(self, metrics: list[str]) -> Curve:
        """Raises UserError where the run did not evaluate what the study shows."""
        path = self.folder / "eval.jsonl"
        if not path.is_file():
            raise UserError(f"{self.folder} has no eval.jsonl: the study's config must evaluate (callbacks.evaluation)")
        curve = read_curve(path)
        if not curve:
            raise UserError(f"{path} has no finished evaluation")
        if missing := [metric for metric in metrics if metric not in curve[-1]]:
            raise UserError(f"{path} has no {missing[0]!r}; it has {', '.join(curve[-1])}")
        return curve


def load_study(path: Path) -> Study:
    """A study file (it may begin with `defaults:`, as every config). Raises UserError or the parser's own error."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Study)
    return Study(**parser.instantiate(parser.parse_object(compose(path))))


def grid(study: Study) -> list[Run]:
    """The runs of a study. The first seed of every variant comes first, so that an interrupted study has seen all variants."""
    runs = []
    for position in range(max(len(study.seeds_of(variant)) for variant in study.variants)):
        for variant in study.variants:
            for seed in study.seeds_of(variant)[position : position + 1]:
                folder = study.runs / slug(variant.name) / f"seed_{seed}"
                options = [*variant.options, f"--trainer.max_steps={study.max_steps}"]
                runs.append(Run(variant.name, seed, folder, variant.config or study.config, options))
    return runs


def write_json(path: Path, content: dict) -> None:
    write_text(json.dumps(content, indent=1, default=_plain) + "\n", path)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)

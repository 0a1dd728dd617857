"""The runs of a campaign: what they train, how the undisturbed one ends, and whether another has ended alike."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.campaign.processes import Training
from tests.support.runs import assert_identical
from tests.support.tiny import STRATEGIES, save_tiny_pipeline, write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

STEPS = {"stage 1": 6, "stage 2": 3}
WHOLE_RUN = 600.0  # seconds after which a run hangs
EXPORTS = {"stage 1": "cold_start", "stage 2": "rtdmd"}
EVALUATION = {
    "class_path": "rtdmd_lightning.callbacks.RewardEvalCallback",
    "init_args": {"prompts": "shapes:held_out:1", "rewards": [], "every_n_updates": 2, "batch_size": 6, "grid": 4},
}


class Broken(AssertionError):
    """What a trial found."""


@dataclass(frozen=True)
class End:
    """What a run leaves."""

    checkpoint: dict
    result: dict
    scores: dict
    leftovers: list[str]

    def compare(self, other: "End") -> None:
        for part in ("checkpoint", "result", "scores"):
            try:
                assert_identical(getattr(self, part), getattr(other, part))
            except AssertionError as error:
                raise Broken(f"another {part} than the undisturbed run's") from error
        if other.leftovers:
            raise Broken(f"left behind: {', '.join(other.leftovers)}")


@dataclass(frozen=True)
class Run:
    """A stage, on one process or with a strategy on two."""

    stage: str
    strategy: str | None
    pipeline: Path
    cold_start: Path

    def arguments(self, folder: Path) -> list[str]:
        """A config in the folder, and what `fit` trains it with."""
        if self.stage == "stage 1":
            config = write_config(folder, self.pipeline)
        else:
            config = write_rtdmd_config(folder, self.pipeline, self.cold_start, callbacks={"evaluation": EVALUATION})
        options = [f"--trainer.max_steps={STEPS[self.stage]}", "--callbacks.export.every_n_updates=2"]
        if self.strategy is not None:
            options += [*STRATEGIES[self.strategy], "--trainer.devices=2"]
        return ["--config", str(config), *options]

    @property
    def ranks(self) -> int:
        return 1 if self.strategy is None else 2

    def start(self, folder: Path, *options: str, **orders) -> Training:
        return Training([*self.arguments(folder), *options], folder, self.ranks, **orders)

    def resume(self, folder: Path, **orders) -> Training:
        return self.start(folder, "--ckpt_path=last", **orders)

    def finish(self, folder: Path, reference: End) -> None:
        """Go on to the end, which must be the undisturbed run's. Raises Broken."""
        statuses = self.resume(folder).end(WHOLE_RUN)
        if any(statuses):
            raise Broken(f"the resumed run ended with {statuses}")
        reference.compare(self.end_of(folder))

    def end_of(self, folder: Path) -> End:
        run = folder / "runs/run"
        checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        kept = {name: checkpoint[name] for name in ("global_step", "state_dict", "optimizer_states")}
        result = torch.load(run / EXPORTS[self.stage] / "generator_ema.pt", weights_only=True)
        rows = [json.loads(row) for row in (run / "eval.jsonl").read_text().splitlines()]
        scores = {row.pop("step"): {k: v for k, v in row.items() if k != "training_seconds"} for row in rows}
        leftovers = [str(path.relative_to(run)) for path in run.rglob("*") if "partial" in path.name]
        return End(_lists(kept), dict(result), scores, leftovers)

    def undisturbed(self, folder: Path) -> tuple[End, float]:
        """Its end, and how long it took."""
        training = self.start(folder)
        begun = time.monotonic()
        statuses = training.end(WHOLE_RUN)
        if any(statuses):
            raise Broken(f"the undisturbed run ended with {statuses}: see {training.log}")
        return self.end_of(folder), time.monotonic() - begun


def _lists(value: Any) -> Any:
    """Tuples as lists: FSDP2 gives an optimizer its options back as those."""
    if isinstance(value, dict):
        return {key: _lists(one) for key, one in value.items()}
    return [_lists(one) for one in value] if isinstance(value, list | tuple) else value


def prepare(folder: Path) -> tuple[Path, Path]:
    """A tiny pipeline and the cold start of stage 2."""
    save_tiny_pipeline(folder / "pipeline")
    return folder / "pipeline", save_cold_start(folder / "pipeline", folder / "cold_start")


def check_checkpoint(folder: Path) -> None:
    """Whatever has happened, the last checkpoint can be read, if there is one. Raises Broken."""
    last = folder / "runs/run/checkpoints/last.ckpt"
    try:
        if last.exists():
            torch.load(last, weights_only=True)
    except Exception as error:
        raise Broken(f"{last} cannot be read: {error}") from error


def check_sentence(log: Path) -> None:
    """A refusal is one sentence, and no traceback. Raises Broken."""
    text = log.read_text(errors="replace")
    if "Traceback" in text:
        raise Broken("a traceback")
    if not [line for line in text.splitlines() if line.startswith("error: ")]:
        raise Broken("no sentence that says what is wrong")

"""What the console says of a run: numbers of the stage, the time left, and at the end how to draw with the result."""

import shlex

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks.progress import evaluations_left, fitting, numbers_of
from tests.support.tiny import write_config


@pytest.mark.parametrize(
    ("step", "last", "every", "wanted"),
    [(0, 80, 50, 2), (50, 80, 50, 1), (50, 100, 50, 1), (100, 100, 50, 0), (99, 100, 50, 1), (7, 10, None, 0)],
)
def test_evaluations_that_are_still_to_come(step, last, every, wanted):
    """After every `every` updates, and one more at the end."""
    assert evaluations_left(step, last, every) == wanted
    if every:
        due = {update for update in range(step + 1, last + 1) if update % every == 0 or update == last}
        assert len(due) == wanted


def test_stage_1_shows_its_losses_and_an_evaluations_first_score():
    logged = {"generator/loss_segment_1": 1.0, "generator/loss_segment_4": 3.0, "fake_score/loss_segment_2": 0.5}
    logged |= {"time/rollout": 9.0, "eval/strict": 0.1}
    numbers = numbers_of({name: torch.tensor(value) for name, value in logged.items()}, {}, {"strict": 0.25})
    assert numbers == {"loss": 2.0, "fake-score loss": 0.5, "strict": 0.25}


def test_stage_2_shows_the_trained_reward_and_the_held_out_score():
    logged = {"reward/a": 2.0, "reward/b": 4.0, "generator/loss": 9.0}
    metrics, headline = (
        {name: torch.tensor(value) for name, value in logged.items()},
        {"trained": 0.1, "held_out": 0.75},
    )
    numbers = numbers_of(metrics, {"a": 1.0, "b": 0.5}, headline)
    assert numbers == {"reward": 4.0, "held out": 0.75}


def test_nothing_is_shown_that_was_not_logged():
    assert numbers_of({}, {"a": 1.0}, {}) == numbers_of({}, {}, {}) == {}


def test_what_does_not_fit_is_left_out_whole():
    parts = ["evaluating", "0:10 left", "loss 1.5"]
    assert [fitting(parts, width) for width in (31, 30, 21, 10, 3)] == [
        *("evaluating  0:10 left  loss 1.5", "evaluating  0:10 left", "evaluating  0:10 left", "evaluating", ""),
    ]


def test_a_run_tells_its_updates_its_folder_and_how_to_draw(tiny_folder, tmp_path, capsys, caplog):
    """In a log file: lines. Nothing that libraries say of themselves."""
    config = str(write_config(tmp_path, tiny_folder))
    bar = ["--callbacks.progress=rtdmd_lightning.callbacks.TrainingProgress", "--callbacks.progress.every_seconds=1e-9"]
    export = ["--callbacks.export=rtdmd_lightning.callbacks.ExportGenerator", "--callbacks.export.name=result"]
    folder = tmp_path / "folder"
    fit.main(
        [
            "--config",
            config,
            *bar,
            *export,
            f"--run_dir={folder}",
            "--trainer.max_steps=2",
            "--trainer.enable_progress_bar=true",
        ]
    )
    captured = capsys.readouterr()
    updates = [line.split("  ") for line in captured.out.splitlines() if line.startswith("update ")]
    assert [update[0] for update in updates] == ["update 1/2", "update 2/2"]
    assert "left" in updates[0][1] and any(part.startswith("loss ") for part in updates[1])
    assert f"{folder}: 2 updates" in captured.out
    command = captured.out.split("draw with it: ")[1].splitlines()[0]
    words = shlex.split(command)
    assert words[:2] == ["rtdmd", "sample"] and words[words.index("--adapters") + 1] == str(folder / "result")
    for noise in ("Tip", "GPU available: False", "Loading", "LeafSpec"):
        assert noise not in captured.out + captured.err + caplog.text

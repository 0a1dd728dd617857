"""The alarm: when it fires and when not, what it leaves behind, and that a run that it stopped goes on."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks import RewardEvalCallback, RewardHackingAlarm
from rtdmd_lightning.callbacks.alarm import CHECKPOINT
from rtdmd_lightning.callbacks.measures import Evaluation
from rtdmd_lightning.utils.errors import UserError
from tests.support.held_out import PROMPTS, Length, Scripted
from tests.support.runs import assert_identical
from tests.support.tiny import tiny_module, write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config


def fires(alarm, trained, **held_out):
    """At which of the evaluations, numbered from 0."""
    steps = range(len(trained))
    evaluations = [Evaluation(i, trained[i], {name: scores[i] for name, scores in held_out.items()}) for i in steps]
    return [evaluation.step for evaluation in evaluations if alarm.fallen(evaluation)]


@pytest.mark.parametrize(
    ("trained", "held_out", "expected"),
    [
        ([0.5, 0.6], [1.0, 0.7], [1]),
        ([0.5, 0.6], [1.0, 1.1], []),  # both rise
        ([0.5, 0.4], [1.0, 0.7], []),  # both fall: a bad run, no hacking
        ([0.5, 0.5], [1.0, 0.7], []),
        ([0.5, 0.6], [1.0, 0.81], []),  # not far enough
        ([0.5, 0.6, 0.7], [1.0, 0.9, 0.79], [2]),  # little by little
        ([0.5, 0.6, 0.7, 0.8], [1.0, 2.0, 1.5, 1.7], [2]),  # first with the reward, then against it; it recovers
        ([0.5, 0.9, 0.8], [1.0, 1.5, 1.0], []),  # at the peak the reward stood higher
        ([0.5, 0.6, 0.7], [-1.0, -1.1, -1.3], [2]),  # a score below zero
        ([0.5, 0.7, 0.6], [1.0, 1.0, 0.7], []),  # as high again: the later one counts
        ([0.5], [1.0], []),
    ],
)
def test_it_fires_where_the_reward_has_risen_and_a_measure_has_fallen_too_far_since_its_peak(
    trained, held_out, expected
):
    assert fires(RewardHackingAlarm(max_drop=0.2), trained, strict=held_out) == expected


def test_each_measure_is_watched_alone_and_those_that_fell_are_named():
    alarm = RewardHackingAlarm(max_drop=0.2)
    assert fires(alarm, [0.5, 0.6], strict=[0.4, 0.9], diversity=[0.2, 0.18]) == []
    (sentence,) = alarm.fallen(Evaluation(2, 0.7, {"strict": 0.9, "diversity": 0.15}))
    assert sentence == "Since step 0 it rose from 0.5000 to 0.7000, diversity fell from 0.2000 to 0.1500."


def test_its_memory_survives_a_resume():
    first, resumed = RewardHackingAlarm(), RewardHackingAlarm()
    assert fires(first, [0.5, 0.6], strict=[1.0, 0.9]) == []
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))  # plain numbers: `weights_only` reads them
    later = Evaluation(2, 0.7, {"strict": 0.7})
    assert resumed.fallen(later) and not RewardHackingAlarm().fallen(later)


@pytest.mark.parametrize("max_drop", [0.0, 1.0, -0.1])
def test_a_drop_that_is_no_fraction_is_refused(max_drop):
    with pytest.raises(UserError, match="max_drop must lie between 0 and 1"):
        RewardHackingAlarm(max_drop=max_drop)


def test_it_wants_rewards_that_are_trained_on_and_an_evaluation(tiny_folder):
    evaluation = RewardEvalCallback(PROMPTS, [Length()], every_n_updates=1)
    with pytest.raises(UserError, match="not ACDMDModule and 1"):
        RewardHackingAlarm().setup(SimpleNamespace(callbacks=[evaluation]), tiny_module(tiny_folder), "fit")


# In a run of stage 2.


def train(folder, pipeline, cold_start, *, stop, updates=3, checkpoint=None):
    """Stage 2 with an alarm, the best and the last checkpoint."""
    config = write_rtdmd_config(folder, pipeline, cold_start)
    cli = fit.parse(["--config", str(config), f"--trainer.max_steps={updates}"])
    every = {"every_n_train_steps": 1}
    cli.trainer.callbacks[:] = [
        Scripted(PROMPTS, [Length()], every_n_updates=1, grid=2, at_start=True),
        RewardHackingAlarm(stop=stop),
        ModelCheckpoint(filename="best", monitor="eval/held_out", mode="max", enable_version_counter=False, **every),
        ModelCheckpoint(save_last=True, **every),
    ]
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint)
    return cli.trainer


def read(run, name):
    return torch.load(run / "checkpoints" / name, weights_only=True)


@pytest.mark.slow
def test_a_run_is_stopped_with_its_best_and_its_last_state_kept_and_goes_on_from_there(tiny_folder, tmp_path):
    cold_start = save_cold_start(tiny_folder, tmp_path / "cold_start")
    run = tmp_path / "stopped/runs/run"
    with pytest.warns(UserWarning, match=r"step 2: the trained reward rises.*length fell from 12\.0000 to 6\.0000"):
        trainer = train(tmp_path / "stopped", tiny_folder, cold_start, stop=True)
    assert trainer.global_step == 2
    assert [read(run, name)["global_step"] for name in ("best.ckpt", CHECKPOINT, "last.ckpt")] == [1, 2, 2]

    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["eval/held_out"] for row in rows] == [10, 12, 6]
    # Neither of the trained rewards is listed with the callback; their weights are 1.
    assert [row["eval/trained"] for row in rows] == pytest.approx([0.0, 0.2, 0.4])
    assert {"eval/redness", "eval/contrast", "eval/length"} <= rows[0].keys()
    events = EventAccumulator(str(run)).Reload()
    (text,) = events.Tensors("eval/alarm/text_summary")
    assert text.step == 2 and b"length fell" in text.tensor_proto.string_val[0]

    with pytest.warns(UserWarning, match="step 3: the trained reward rises"):  # the peak at step 1 is remembered
        train(tmp_path / "stopped", tiny_folder, cold_start, stop=False, checkpoint=run / "checkpoints" / CHECKPOINT)
    assert read(run, "best.ckpt")["global_step"] == 1
    with pytest.warns(UserWarning, match="step 3: the trained reward rises"):
        train(tmp_path / "whole", tiny_folder, cold_start, stop=False)
    one, other = read(tmp_path / "whole/runs/run", "last.ckpt"), read(run, "last.ckpt")
    assert one["global_step"] == other["global_step"] == 3
    assert_identical(one["state_dict"], other["state_dict"])
    assert_identical(one["optimizer_states"], other["optimizer_states"])


def test_a_wrong_evaluation_is_told_before_a_model_is_loaded(tiny_folder, tmp_path):
    cli = fit.parse(["--config", str(write_config(tmp_path, tiny_folder))])
    for evaluation, message in (
        (RewardEvalCallback("/nowhere.txt", [Length()], 1), "'/nowhere.txt' does not exist"),
        (RewardEvalCallback(PROMPTS, [Length()], 1, held_out_weights={"lenght": 1.0}), "names 'lenght'"),
    ):
        cli.trainer.callbacks[:] = [evaluation]
        with pytest.raises(UserError, match=message):
            cli.trainer.fit(cli.model, cli.datamodule)
        assert not hasattr(cli.model, "transformer")

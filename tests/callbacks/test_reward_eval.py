"""The evaluation callback: means by hand, the split over ranks, what is written, what counts as training time."""

import json
import multiprocessing
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.io import decode_image, read_image

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks import RewardEvalCallback, reward_eval
from rtdmd_lightning.callbacks.diversity import DiversitySettings
from rtdmd_lightning.callbacks.reward_eval import evaluated_steps
from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.cleanness import CleannessReward
from rtdmd_lightning.rewards.mixture import RewardError, RewardMixture
from rtdmd_lightning.rewards.shapes import ShapesReward
from rtdmd_lightning.roles.roles import EMA, GENERATOR
from rtdmd_lightning.utils.errors import UserError
from tests.support.held_out import COUNT, PROMPTS, Length
from tests.support.tiny import write_config


class Brightness(Reward):
    """What is scored is the image."""

    name, differentiable = "brightness", False

    def score(self, images, prompts, metadata):
        assert len(images) == len(prompts) == len(metadata)
        return images.mean(dim=(1, 2, 3))


class Student:
    """Stands in for the module: image i is evenly as bright as i / 100, as if every further image of a prompt were brighter
    than the last by as much as there are prompts. Notes which images were asked for."""

    device = torch.device("cpu")

    def __init__(self):
        self.drawn = []

    def generate(self, prompts, indices, *, seed):
        everyone = load_prompts(PROMPTS)
        assert prompts == [everyone[index % COUNT]["prompt"] for index in indices] and seed == 1234
        self.drawn.append(list(indices))
        return torch.tensor(indices).div(100).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def trainer_in(folder, *, rank=0, world_size=1, step=7):
    """What the callback asks of a trainer whose run is in the folder."""
    return SimpleNamespace(
        global_step=step,
        global_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        default_root_dir=str(folder),
        loggers=[],
    )


@pytest.fixture
def fake_trainer(tmp_path):
    return partial(trainer_in, tmp_path)


def callback(**options):
    settings = {
        "prompts": PROMPTS,
        "rewards": [Brightness(), Length()],
        "every_n_updates": 2,
        "batch_size": 5,
        "grid": 4,
    }
    return RewardEvalCallback(**settings | options)


def expected_scores():
    metadata = load_prompts(PROMPTS)
    by_group = {"": list(range(COUNT))}
    for index, entry in enumerate(metadata):
        by_group.setdefault(f"/{entry['tag']}", []).append(index)
    brightness = {g: sum(i) / len(i) / 100 for g, i in by_group.items()}
    lengths = {g: sum(len(metadata[j]["prompt"]) for j in i) / len(i) for g, i in by_group.items()}
    return {
        f"eval_by_tag/{name}{group}" if group else f"eval/{name}": mean
        for name, means in {"brightness": brightness, "length": lengths}.items()
        for group, mean in means.items()
    }


# Five prompts of three images: pairs are 12, 12 and 24 hundredths apart.
GROUPS, EXPECTED_DIVERSITY = DiversitySettings(prompts=5, images_per_prompt=3), (0.12 + 0.12 + 0.24) / 3


@pytest.mark.parametrize("batch_size", [1, 5, 12, 60])
def test_several_images_of_some_prompts_make_the_diversity(batch_size, fake_trainer):
    student = Student()
    scores = callback(batch_size=batch_size, diversity=GROUPS).evaluate(fake_trainer(), student)
    assert float(scores["eval/diversity"]) == pytest.approx(EXPECTED_DIVERSITY)
    assert {name: float(scores[name]) for name in expected_scores()} == pytest.approx(expected_scores())
    assert all(len(drawn) <= max(batch_size, GROUPS.images_per_prompt) for drawn in student.drawn)  # the grid's too
    extra = {index for drawn in student.drawn for index in drawn if index >= COUNT}
    assert extra == {i + k * COUNT for i in (0, 2, 5, 8, 11) for k in (1, 2)}
    firsts = [index for drawn in student.drawn for index in drawn if index < COUNT]
    # A group's first image is the scored one, and so are the grid's.
    assert sorted(firsts) == sorted([*range(COUNT), 0, 2, 5, 8, 11, 0, 3, 7, 11])


@pytest.mark.parametrize("batch_size", [1, 5, 12, 60])
def test_means_per_reward_and_tag_are_those_worked_out_by_hand(batch_size, fake_trainer):
    evaluation = callback(batch_size=batch_size)
    scores = evaluation.evaluate(fake_trainer(), Student())
    assert list(scores) == evaluation.metric_names() and len(scores) == 2 * (1 + 6)
    assert {name: float(score) for name, score in scores.items()} == pytest.approx(expected_scores())


class Undefined(Reward):
    """Of one prompt, no number."""

    name, differentiable = "undefined", False

    def score(self, images, prompts, metadata):
        third = load_prompts(PROMPTS)[2]["prompt"]
        return torch.tensor([float("nan") if prompt == third else 1.0 for prompt in prompts])


def test_a_score_that_is_no_number_stops_the_run_by_reward_and_prompt(fake_trainer):
    """A mean that leaves it out would choose the best checkpoint."""
    third = load_prompts(PROMPTS)[2]["prompt"]
    with pytest.raises(RewardError, match=f"'undefined' returned nan for the prompt '{third}'"):
        callback(rewards=[Undefined()]).evaluate(fake_trainer(), Student())


def test_prompts_without_tags_have_one_mean_per_reward(tmp_path):
    (tmp_path / "prompts.txt").write_text("a circle\na cross\n")
    assert callback(prompts=str(tmp_path / "prompts.txt")).metric_names() == ["eval/brightness", "eval/length"]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("batch_size", [1, 5, 7, 12, 100])
def test_ranks_share_the_prompts_out_in_equally_many_batches(world_size, batch_size):
    batches = [reward_eval.local_batches(COUNT, batch_size, rank, world_size) for rank in range(world_size)]
    dealt = [index for of_rank in batches for batch in of_rank for index in batch]
    assert sorted(dealt) == list(range(COUNT))
    assert len({len(of_rank) for of_rank in batches}) == 1
    assert all(len(batch) <= batch_size for of_rank in batches for batch in of_rank)


def test_a_rank_with_nothing_left_draws_along_and_scores_nothing(monkeypatch, fake_trainer):
    """Sharded forward passes need every rank, so all draw equally often; here the third rank has no prompt at all."""
    monkeypatch.setattr(reward_eval, "MeanMetric", lambda **_: Counter())
    students, counts = [Student() for _ in range(3)], []
    for rank, student in enumerate(students):
        evaluation = callback(batch_size=6, diversity=DiversitySettings(prompts=4, images_per_prompt=3))
        scores = evaluation.evaluate(fake_trainer(rank=rank, world_size=3), student)
        counts.append((int(scores["eval/brightness"]), int(scores["eval/diversity"])))
    assert [len(student.drawn) for student in students] == [3, 3, 3]  # a batch, a batch of two groups and the grid each
    assert counts == [(6, 2), (6, 2), (0, 0)]


class Counter:
    """In the place of a metric: how many values it was given."""

    def __init__(self):
        self.count = 0

    def to(self, device):
        return self

    def update(self, value):
        self.count += value.numel()

    def compute(self):
        return torch.tensor(self.count)


def evaluate_on_rank(rank, folder):
    """One of two processes; leaves the means that it came to."""
    store, patience = f"file://{folder}/store", timedelta(seconds=600)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    try:
        evaluation = callback(batch_size=4, diversity=GROUPS)
        scores = evaluation.evaluate(trainer_in(folder, rank=rank, world_size=2), Student())
    finally:
        dist.destroy_process_group()
    (folder / f"rank_{rank}.json").write_text(json.dumps({name: float(score) for name, score in scores.items()}))


@pytest.mark.slow
def test_two_processes_both_come_to_the_means_over_all_prompts_and_one_of_them_writes(tmp_path):
    """Unevenly: of batches of 4 the first rank, which is this process, has 8 prompts and the second 4; of the five groups, one
    at once, it has three."""
    second = multiprocessing.get_context("spawn").Process(target=evaluate_on_rank, args=(1, tmp_path))
    second.start()
    evaluate_on_rank(0, tmp_path)
    second.join()
    for rank in range(2):
        expected = expected_scores() | {"eval/diversity": EXPECTED_DIVERSITY}
        assert json.loads((tmp_path / f"rank_{rank}.json").read_text()) == pytest.approx(expected)
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 1


def picture_in(grid, number):
    """The four images are 8 pixels wide and enlarged 20 times, each with 8 pixels to its left and above it."""
    return grid[:, 8 : 8 + 160, 8 + number * 168 :][:, :, :160]


def test_an_evaluation_leaves_a_row_and_a_grid(tmp_path, fake_trainer):
    evaluation = callback()
    evaluation.training_seconds = 12.3456
    for step in (7, 14):
        evaluation.evaluate(fake_trainer(step=step), Student())
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [7, 14] and rows[0]["training_seconds"] == 12.35
    scores = {name: value for name, value in rows[0].items() if name.startswith("eval")}
    assert scores == pytest.approx(expected_scores(), abs=1e-5)
    # Four images spread from the first prompt to the last: 0, 3, 7 and 11 hundredths.
    grid = read_image(str(tmp_path / "images/step_000007.png"))
    for number, brightness in enumerate((0, 3, 7, 11)):
        assert (picture_in(grid, number) == round(2.55 * brightness)).all()
    assert (tmp_path / "images/step_000014.png").is_file()


def test_a_row_that_a_kill_has_cut_off_is_gone_with_the_next(tmp_path, fake_trainer):
    callback().evaluate(fake_trainer(step=7), Student())
    rows = tmp_path / "eval.jsonl"
    first = rows.read_text()
    rows.write_text(first + first[:20])
    assert evaluated_steps(rows) == {7}
    callback().evaluate(fake_trainer(step=14), Student())
    assert rows.read_text().startswith(first) and evaluated_steps(rows) == {7, 14}


def test_tensorboard_has_the_grid_as_in_the_folder_and_the_scores_at_the_same_step(tmp_path, fake_trainer):
    trainer = fake_trainer()
    trainer.loggers = [TensorBoardLogger(tmp_path, name="", version="")]
    callback().evaluate(trainer, Student())
    trainer.loggers[0].experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    (shown,) = events.Images("images")
    picture = decode_image(torch.frombuffer(bytearray(shown.encoded_image_string), dtype=torch.uint8))
    assert shown.step == 7
    assert torch.equal(picture, read_image(str(tmp_path / "images/step_000007.png")))
    for name, score in expected_scores().items():
        (point,) = events.Scalars(name)
        assert (point.step, point.value) == (7, pytest.approx(score))


def test_the_runs_folder_need_not_exist_yet(tmp_path, fake_trainer):
    callback().evaluate(trainer_in(tmp_path / "new"), Student())
    assert (tmp_path / "new/eval.jsonl").is_file()


@pytest.mark.parametrize("name", ["every_n_updates", "batch_size", "grid"])
def test_counts_must_be_at_least_1(name):
    with pytest.raises(UserError, match=f"{name} must be at least 1, not 0"):
        callback(**{name: 0})


def test_names_of_rewards_must_differ():
    with pytest.raises(UserError, match="reward names must differ"):
        callback(rewards=[Length(), Length()])


def test_training_time_leaves_evaluation_and_the_wait_for_data_out(monkeypatch, fake_trainer):
    """A clock that an evaluation moves by 100 s, waiting for a batch by 10 s and a training step by 1 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(reward_eval.time, "perf_counter", lambda: clock.now)
    evaluation, module = callback(every_n_updates=2), SimpleNamespace(log_dict=lambda scores, **_: None)
    steps = []

    def evaluate(trainer, pl_module):
        clock.now += 100
        steps.append(trainer.global_step)
        return {}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    for step in range(1, 6):
        clock.now += 10
        evaluation.on_train_batch_start(fake_trainer(), module, None, step)
        clock.now += 1
        evaluation.on_train_batch_end(fake_trainer(step=step), module, None, None, step)
    assert steps == [2, 4] and evaluation.training_seconds == 5


def test_training_time_is_in_the_checkpoint():
    first, second = callback(), callback()
    first.training_seconds = 61.5
    second.load_state_dict(first.state_dict())
    assert second.training_seconds == 61.5


class SeesTheMetric(RewardEvalCallback):
    """Notes what `ModelCheckpoint(monitor=…)` would be given after each step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seen = {name: float(value) for name, value in trainer.callback_metrics.items() if "eval/" in name}


@pytest.mark.slow
def test_in_a_run_it_evaluates_the_ema_on_time_and_at_the_end_and_checkpoints_can_monitor_it(tiny_folder, tmp_path):
    config = write_config(
        tmp_path, tiny_folder, ema={"decay": 0.5, "moves": 1}, generator_optimizer={"learning_rate": 0.1}
    )
    cli = fit.parse(["--config", str(config), "--trainer.max_steps=3"])
    evaluation = SeesTheMetric(PROMPTS, [Brightness()], every_n_updates=2, grid=4)
    cli.trainer.callbacks[:] = [evaluation]
    cli.trainer.fit(cli.model, cli.datamodule)
    rows = [json.loads(line) for line in (tmp_path / "runs/run/eval.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    assert 0 < rows[0]["training_seconds"] < rows[1]["training_seconds"]
    first, last = (row["eval/brightness"] for row in rows)
    assert evaluation.seen["eval/brightness"] == pytest.approx(first, abs=1e-5)
    prompts = [entry["prompt"] for entry in load_prompts(PROMPTS)]
    ema, generator = (
        float(cli.model.generate(prompts, range(COUNT), seed=1234, role=role).mean()) for role in (EMA, GENERATOR)
    )
    assert last == pytest.approx(ema, abs=1e-5)
    assert min(abs(first - last), abs(generator - last)) > 1e-4  # neither the earlier weights nor the generator's own


def test_held_out_rewards_lie_where_the_trained_ones_do():
    for offloaded in (False, True):
        trained, held_out = ShapesReward(), CleannessReward()
        module = SimpleNamespace(rewards=RewardMixture([trained], {trained.name: 1.0}), device=torch.device("cpu"))
        trained.offloaded = offloaded
        callback = RewardEvalCallback("shapes:train", [held_out], every_n_updates=1)
        callback.on_train_start(None, module)
        assert held_out.offloaded == offloaded

"""The toy world's CLIP: its pairs, its loss, its run, and the committed folder."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from rtdmd_lightning import pretrain_clip
from rtdmd_lightning.pretraining import clip
from rtdmd_lightning.pretraining.clip_pairs import (
    all_contents,
    content_of,
    draw,
    fulfilled,
    neighbours,
    prompts_by_content,
    sample_neighbour,
    sample_pairs,
)
from rtdmd_lightning.rewards.clipscore import ClipScoreReward
from rtdmd_lightning.shapes.prompts import is_held_out, training_prompts
from rtdmd_lightning.shapes.world import Placed, Scene
from tests.support.tiny import REPOSITORY

FOLDER = REPOSITORY / "checkpoints" / "tiny-clip"
NUMBER = {content["prompt"]: number for number, content in enumerate(all_contents())}


def texts(numbers: list[int]) -> set[str]:
    return {all_contents()[number]["prompt"] for number in numbers}


def test_neighbours_differ_in_one_respect():
    assert texts(neighbours(NUMBER["two crosses"])) == {
        "three crosses", "four crosses", "two circles", "two squares", "two triangles",
    }  # fmt: skip
    assert texts(neighbours(NUMBER["a circle left of a square"])) == {
        "a square left of a circle", "a circle right of a square", "a circle above a square", "a circle below a square",
        "a triangle left of a square", "a cross left of a square", "a circle left of a triangle", "a circle left of a cross",
    }  # fmt: skip
    of_colors = texts(neighbours(NUMBER["a red circle and a blue square"]))
    assert {"a blue circle and a red square", "a green circle and a blue square"} <= of_colors
    assert "a green circle and a red square" not in of_colors
    assert "a square and a circle" not in texts(
        neighbours(NUMBER["a circle and a square"])
    )  # the same in another order


def test_what_a_scene_fulfils():
    """Whatever it is asked for: less specific prompts too, and the position both ways round."""
    scene = Scene((Placed("circle", "red", 8, 8, 5), Placed("square", "blue", 24, 9, 5)), ground=0.9)
    held = {content["prompt"] for content, holds in zip(all_contents(), fulfilled(scene), strict=True) if holds}
    assert held == {
        "a circle", "a square", "a circle and a square", "a square and a circle", "a red circle", "a blue square",
        "a circle left of a square", "a square right of a circle", "a red circle and a blue square",
        "a blue square and a red circle",
    }  # fmt: skip


def test_pairs_are_training_pairs_beside_their_neighbours():
    pairs = sample_pairs(60, seed=1)
    assert pairs.images.shape == (60, 3, 32, 32) and pairs.images.dtype == torch.uint8
    assert not any(is_held_out(entry) for entry in pairs.metadata)
    numbers = torch.arange(60)
    assert pairs.content.tolist() == [content_of(entry) for entry in pairs.metadata]
    assert pairs.fulfils[numbers, pairs.content].all()
    assert all(b in neighbours(a) for a, b in pairs.content.view(-1, 2).tolist())
    assert torch.equal(sample_pairs(60, seed=1).images, pairs.images)
    assert not torch.equal(sample_pairs(60, seed=2).images, pairs.images)


def test_held_out_neighbours_are_held_out():
    rng = np.random.default_rng(0)
    for entry in training_prompts("colors")[::50]:
        assert is_held_out(sample_neighbour(entry, rng, held_out=True))
    assert sum(not wordings for wordings in prompts_by_content(False)) > 0  # those that name an unseen pair


def test_the_loss_is_least_where_all_right_columns_share():
    right = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    sure = torch.where(right.bool(), 30.0, 0.0)
    torch.testing.assert_close(clip.share_loss(sure, right), torch.tensor(2.0).log() / 2)
    one_sided = sure - torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert clip.share_loss(one_sided, right) > clip.share_loss(sure, right) + 0.5


def test_neighbour_accuracy_looks_at_own_and_neighbour_alone():
    logits = torch.tensor([[2.0, 1.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0], [9.0, 9.0, 1.0, 2.0], [9.0, 9.0, 1.0, 2.0]])
    assert clip.neighbour_accuracy(logits, torch.eye(4)) == 0.5
    right = torch.eye(4)
    right[1, 0] = 1  # the second picture fulfils its neighbour's prompt too: no wrong answer there
    assert clip.neighbour_accuracy(logits, right) == pytest.approx(2 / 3)


def test_augmented_pictures_stay_pictures():
    torch.manual_seed(0)
    images = sample_pairs(20, seed=0).images / 255
    changed = [clip.augment(images) for _ in range(6)]
    assert all(one.min() >= 0 and one.max() <= 1 and one.shape == images.shape for one in changed)
    distances = [float((one - images).abs().mean()) for one in changed]
    assert min(distances) > 0 and max(distances) < 0.1


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command with a model small enough to train in a second."""
    for name, value in {"WIDTH": 16, "VISION_LAYERS": 1, "TEXT_LAYERS": 1, "BATCH_SIZE": 8}.items():
        monkeypatch.setattr(clip, name, value)
    monkeypatch.setattr(pretrain_clip, "retrieval_report", lambda folder: {"retrieval": 0.0})

    def _run(steps: int) -> dict:
        pretrain_clip.main(tmp_path / "out", tmp_path / "run", steps=steps, pairs=32)
        return torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)

    return _run


@pytest.mark.slow
def test_the_run_resumes_and_its_folder_loads(run, tmp_path):
    assert run(3)["global_step"] == 3
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run(5)["global_step"] == 5
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != first
    reward = ClipScoreReward(weights=str(tmp_path / "out"))
    reward.to(torch.device("cpu"))
    scores = reward.score(torch.rand(2, 3, 32, 32), ["a photo of a circle"] * 2, [{}, {}])
    assert scores.isfinite().all()


def test_the_committed_folder_is_small_and_loads_by_the_stock_classes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6e6
    processor, model = CLIPProcessor.from_pretrained(FOLDER), CLIPModel.from_pretrained(FOLDER, dtype=torch.float32)
    rng = np.random.default_rng(0)
    metadata = [prompts_by_content(True)[NUMBER[text]][0] for text in ("a red circle", "two crosses", "a blue square")]
    images = draw(metadata, rng, allow_unseen=False).images
    inputs = processor(
        text=[entry["prompt"] for entry in metadata], images=list(images), return_tensors="pt", padding=True
    )
    assert model(**inputs).logits_per_image.argmax(dim=1).tolist() == [0, 1, 2]


def test_the_committed_model_tells_held_out_neighbours_apart():
    """Also under the reward's gradient: a step up the score is not noise but a picture closer to the prompt's."""
    reward = ClipScoreReward(weights=str(FOLDER))
    reward.to(torch.device("cpu"))
    rng = np.random.default_rng(7)
    for tag, wanted in (("colors", 0.97), ("counting", 0.97), ("color_attr", 0.95), ("position", 0.9)):
        numbers = [number for number, content in enumerate(all_contents()) if content["tag"] == tag]
        wordings = [prompts_by_content(True)[number] for number in rng.choice(numbers, 60)]
        metadata = [prompts[rng.integers(len(prompts))] for prompts in wordings]
        others = [sample_neighbour(entry, rng, held_out=True) for entry in metadata]
        pairs = draw(metadata, rng, allow_unseen=True)
        images, no_metadata = pairs.images / 255, [{}] * 60
        right, wrong = (reward.score(images, [e["prompt"] for e in of], no_metadata) for of in (metadata, others))
        differ = ~pairs.fulfils[torch.arange(60), torch.tensor([content_of(entry) for entry in others])]
        assert (right > wrong)[differ].float().mean() >= wanted, tag

"""Scenes fulfil their prompts, objects keep apart, and "left of" and its kin are GenEval's."""

import math

import numpy as np
import pytest

from rtdmd_lightning.geneval.score import spatial_relations
from rtdmd_lightning.geneval.vocabulary import TAGS
from rtdmd_lightning.shapes.dataset import sample_metadata, sample_pairs
from rtdmd_lightning.shapes.prompts import contents, held_out_prompts
from rtdmd_lightning.shapes.render import AREA_OF_UNIT, CENTROID_OF_UNIT, render, render_batch
from rtdmd_lightning.shapes.world import (
    COLORS,
    GROUND_RANGE,
    IMAGE_SIZE,
    MARGIN,
    QUADRANT,
    SHAPES,
    UNSEEN_PAIRS,
    Placed,
    Scene,
    sample_scene,
)


def box(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def training_scenes(count: int, **options) -> list[tuple[dict, Scene]]:
    rng = np.random.default_rng(0)
    return [(entry, sample_scene(entry, rng, **options)) for entry in sample_metadata(rng, count)]


def position(first: str, relation: str, second: str) -> dict:
    return {
        "prompt": f"a photo of a {first} {relation} a {second}",
        "include": [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}],
    }


# The summed sizes are 10 on both axes, so that 1 is taken off each offset: a 4x4 box at (x, y), a 6x6 box at (0, 0).
@pytest.mark.parametrize(
    ("x", "y", "held"),
    [
        (-9, 0, {"left of"}),
        (9, 0, {"right of"}),
        (0, -9, {"above"}),  # y points down
        (0, 9, {"below"}),
        (0, 0, set()),
        (-0.9, 0, set()),  # less than what is taken off
        (-2.0, 0, set()),  # (2 - 1) / 2 is the cosine threshold itself, which does not suffice
        (-2.01, 0, {"left of"}),
        (1.99, 0, set()),
        (2.01, 0, {"right of"}),
        (0, -1.99, set()),
        (0, -2.01, {"above"}),
        (0, 1.99, set()),
        (0, 2.01, {"below"}),
        (3, 3, set()),  # (3 - 1) / (3 √2) = 0.471
        (4, 4, {"right of", "below"}),  # (4 - 1) / (4 √2) = 0.530
        (-4, 4, {"left of", "below"}),
        (10, 7, {"right of"}),  # (7 - 1) / √149 = 0.4915
        (10, -7.2, {"right of", "above"}),  # (7.2 - 1) / √151.84 = 0.5031
    ],
)
def test_spatial_relations_by_hand(x, y, held):
    assert spatial_relations(box(x, y, 4, 4), box(0, 0, 6, 6)) == held
    assert spatial_relations(box(x + 20, y - 7, 4, 4), box(20, -7, 6, 6)) == held


def test_the_threshold_is_taken_per_axis():
    """Two wide, flat boxes: 2 is taken off in x, 0.4 in y."""
    flat = box(0, 0, 10, 2)
    assert spatial_relations(box(-3.9, 0, 10, 2), flat) == set()  # 1.9 / 3.9 < 0.5
    assert spatial_relations(box(-4.1, 0, 10, 2), flat) == {"left of"}
    assert spatial_relations(box(0, -0.7, 10, 2), flat) == set()  # 0.3 / 0.7 < 0.5
    assert spatial_relations(box(0, -0.9, 10, 2), flat) == {"above"}


def test_relations_are_opposite_seen_from_the_other_box():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        a, b = (box(*rng.uniform(0, 32, 2), *rng.uniform(2, 14, 2)) for _ in range(2))
        relations = spatial_relations(a, b)
        assert {opposite[relation] for relation in relations} == spatial_relations(b, a)
        seen |= relations
    assert seen == set(opposite)


def test_scenes_hold_exactly_what_the_prompt_asks_for():
    rng = np.random.default_rng(0)
    for entry in [entry for tag in TAGS for entry in contents(tag)[::7]]:
        objects = sample_scene(entry, rng, allow_unseen=True).objects
        groups = np.repeat(np.arange(len(entry["include"])), [wanted["count"] for wanted in entry["include"]])
        assert len(objects) == len(groups)
        for obj, group in zip(objects, groups, strict=True):
            wanted = entry["include"][group]
            assert obj.shape == wanted["class"]
            assert obj.color == wanted.get("color", obj.color)
            if "position" in wanted:
                relation, target = wanted["position"]
                assert relation in spatial_relations(obj.box, objects[target].box)


def test_every_object_stays_inside_a_quadrant_of_its_own():
    for _, scene in training_scenes(400):
        quadrants = [(int(obj.x // QUADRANT), int(obj.y // QUADRANT)) for obj in scene.objects]
        assert len(set(quadrants)) == len(quadrants)
        assert GROUND_RANGE[0] <= scene.ground <= GROUND_RANGE[1]
        for obj, (column, row) in zip(scene.objects, quadrants, strict=True):
            x0, y0, x1, y1 = obj.box
            assert min(x0 - column * QUADRANT, y0 - row * QUADRANT) >= MARGIN - 1e-9
            assert min((column + 1) * QUADRANT - x1, (row + 1) * QUADRANT - y1) >= MARGIN - 1e-9


def test_training_scenes_show_no_unseen_pair():
    """Not even where the prompt leaves the colour open; `allow_unseen` is what lets them in."""
    scenes = training_scenes(1500)
    shown = {(obj.color, obj.shape) for _, scene in scenes for obj in scene.objects}
    assert shown == {(color, shape) for color in COLORS for shape in SHAPES} - UNSEEN_PAIRS
    allowed = {(obj.color, obj.shape) for _, scene in training_scenes(1500, allow_unseen=True) for obj in scene.objects}
    assert allowed >= UNSEEN_PAIRS


def test_training_pairs_are_these_scenes_rendered():
    images, prompts = sample_pairs(40, seed=3, caption_noise=0.0)
    rng = np.random.default_rng(3)
    metadata = sample_metadata(rng, 40)
    expected = render_batch([sample_scene(entry, rng) for entry in metadata])
    assert prompts == [entry["prompt"] for entry in metadata]
    assert images.shape == (40, 3, IMAGE_SIZE, IMAGE_SIZE)
    np.testing.assert_array_equal(images.numpy(), (255 * expected).round().byte().numpy())


def test_caption_noise_deals_that_share_of_the_prompts_to_other_pictures():
    images, prompts = sample_pairs(400, seed=3, caption_noise=0.0)
    noisy_images, noisy = sample_pairs(400, seed=3, caption_noise=0.25)
    assert noisy_images.equal(images)
    assert sorted(noisy) == sorted(prompts)
    changed = sum(a != b for a, b in zip(noisy, prompts, strict=True))
    assert 90 <= changed <= 100  # a prompt may be dealt to a picture of the same prompt


def test_pairs_and_scenes_are_functions_of_the_seed():
    (images, prompts), (same_images, same_prompts), (other_images, other_prompts) = (
        sample_pairs(20, seed=seed) for seed in (5, 5, 6)
    )
    assert images.equal(same_images) and prompts == same_prompts
    assert not images.equal(other_images) and prompts != other_prompts
    entry = held_out_prompts(1)[0]
    scene, same, other = (sample_scene(entry, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert scene == same != other


@pytest.mark.parametrize(
    "metadata",
    [
        {"prompt": "nothing", "include": []},
        {"prompt": "five circles", "include": [{"class": "circle", "count": 5}]},
        {"prompt": "too many", "include": [{"class": "circle", "count": 3}, {"class": "cross", "count": 2}]},
    ],
)
def test_a_scene_holds_one_to_four_objects(metadata):
    with pytest.raises(ValueError, match="one to four objects"):
        sample_scene(metadata, np.random.default_rng(0))


def test_contradictory_positions_are_refused():
    """Each left of the other: no arrangement can be found, and the message names the prompt."""
    metadata = position("circle", "left of", "square")
    sample_scene(metadata, np.random.default_rng(0))
    metadata["include"][0]["position"] = ["left of", 1]
    with pytest.raises(ValueError, match="a photo of a circle left of a square"):
        sample_scene(metadata, np.random.default_rng(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_rendered_area_and_centroid(shape):
    """The detector's templates rest on them."""
    ground, radius = 0.9, 5.5
    image = render(Scene((Placed(shape, "red", 16.3, 15.8, radius),), ground))
    coverage = (image[..., 2] - ground) / (COLORS["red"][2] - ground)
    centres = np.arange(IMAGE_SIZE) + 0.5
    area = coverage.sum()
    assert math.isclose(area, AREA_OF_UNIT[shape] * radius**2, rel_tol=0.04)
    assert math.isclose((coverage.sum(0) @ centres) / area, 16.3, abs_tol=0.1)
    assert math.isclose((coverage.sum(1) @ centres) / area, 15.8 + CENTROID_OF_UNIT[shape] * radius, abs_tol=0.2)


def test_pixels_inside_are_the_palette_colour_and_outside_the_ground():
    scene = Scene((Placed("square", "green", 8, 8, 5), Placed("circle", "blue", 24, 24, 5)), ground=0.875)
    image = render(scene)
    np.testing.assert_allclose(image[8, 8], COLORS["green"], atol=1e-6)
    np.testing.assert_allclose(image[24, 24], COLORS["blue"], atol=1e-6)
    np.testing.assert_array_equal(image[8, 24], np.float32([0.875] * 3))
    assert image.min() >= 0 and image.max() <= 1

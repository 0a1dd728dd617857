"""Prompts: GenEval's schema, text that says what the metadata asks for, and a split that keeps its promises."""

import re

import numpy as np
import pytest

from rtdmd_lightning.geneval.vocabulary import NUMBERS, RELATIONS, TAGS
from rtdmd_lightning.shapes.dataset import TAG_WEIGHTS, sample_metadata
from rtdmd_lightning.shapes.prompts import (
    PLURALS,
    held_out_prompts,
    is_held_out,
    names_unseen_pair,
    prompts,
    training_prompts,
)
from rtdmd_lightning.shapes.world import COLORS, SHAPES, UNSEEN_PAIRS

EVERYTHING = [entry for tag in TAGS for entry in prompts(tag)]
HELD_OUT = held_out_prompts(100)
PREFIX = re.compile(r"^a (\w+ )?(photo|picture|drawing|painting|render|sketch|print|icon) of ")


def spoken(entry: dict) -> str:
    """The content of a prompt, put together again from its metadata alone."""
    first, *rest = entry["include"]
    if entry["tag"] == "counting":
        return f"{NUMBERS[first['count']]} {PLURALS[first['class']]}"
    if entry["tag"] == "position":
        (second,) = rest
        return f"a {second['class']} {second['position'][0]} a {first['class']}"
    names = [
        f"{wanted['color']} {wanted['class']}" if "color" in wanted else wanted["class"] for wanted in entry["include"]
    ]
    return " and ".join(f"a {name}" for name in names)


def test_the_text_says_what_the_metadata_asks_for():
    for entry in EVERYTHING:
        prefix = PREFIX.match(entry["prompt"])
        assert prefix and entry["prompt"][prefix.end() :] == spoken(entry)


def test_all_prompts_are_distinct():
    texts = [entry["prompt"] for entry in EVERYTHING]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("tag", TAGS)
def test_schema(tag):
    """GenEval's keys and nothing else; `exclude` only where something is counted; positions look back."""
    keys = {"tag", "include", "prompt"} | ({"exclude"} if tag == "counting" else set())
    extra = {"colors": {"color"}, "color_attr": {"color"}}.get(tag, set())
    for entry in prompts(tag):
        assert set(entry) == keys and entry["tag"] == tag
        for index, wanted in enumerate(entry["include"]):
            position = {"position"} if tag == "position" and index == 1 else set()
            assert set(wanted) == {"class", "count"} | extra | position
            assert wanted["class"] in SHAPES and wanted.get("color", "red") in COLORS
            if position:
                relation, target = wanted["position"]
                assert relation in RELATIONS and 0 <= target < index
        if tag == "counting":
            (wanted,) = entry["include"]
            assert entry["exclude"] == [wanted | {"count": wanted["count"] + 1}]
        else:
            assert all(wanted["count"] == 1 for wanted in entry["include"])


def test_two_objects_of_a_prompt_differ():
    for entry in prompts("two_object") + prompts("position") + prompts("color_attr"):
        first, second = entry["include"]
        assert first["class"] != second["class"]
        assert entry["tag"] != "color_attr" or first["color"] != second["color"]


def test_unknown_tag():
    with pytest.raises(ValueError, match=r"'texture'.*single_object"):
        prompts("texture")


def test_training_and_held_out_are_disjoint_and_complete():
    training = {entry["prompt"] for tag in TAGS for entry in training_prompts(tag)}
    held_out = {entry["prompt"] for entry in EVERYTHING if is_held_out(entry)}
    assert not training & held_out
    assert training | held_out == {entry["prompt"] for entry in EVERYTHING}
    assert {entry["prompt"] for entry in HELD_OUT} <= held_out


@pytest.mark.parametrize("tag", TAGS)
def test_about_half_of_the_seen_prompts_are_held_out(tag):
    seen = [entry for entry in prompts(tag) if not names_unseen_pair(entry)]
    assert 0.4 < np.mean([is_held_out(entry) for entry in seen]) < 0.6


def test_no_training_prompt_names_an_unseen_pair():
    training = [entry for tag in TAGS for entry in training_prompts(tag)]
    assert not any(names_unseen_pair(entry) for entry in training)
    assert not any(f"{color} {shape}" in entry["prompt"] for color, shape in UNSEEN_PAIRS for entry in training)
    named = {pair for pair in UNSEEN_PAIRS for entry in HELD_OUT if " ".join(pair) in entry["prompt"]}
    assert named == UNSEEN_PAIRS


def test_600_distinct_held_out_prompts_100_per_tag():
    assert len({entry["prompt"] for entry in HELD_OUT}) == 600
    assert [entry["tag"] for entry in HELD_OUT] == [tag for tag in TAGS for _ in range(100)]


def test_fifteen_percent_of_the_held_out_colours_are_unseen_pairs():
    unseen = [entry["tag"] for entry in HELD_OUT if names_unseen_pair(entry)]
    assert unseen == ["colors"] * 15 + ["color_attr"] * 15


def test_held_out_prompts_are_a_fixed_choice_of_the_seed():
    assert held_out_prompts(20, seed=4) == held_out_prompts(20, seed=4) != held_out_prompts(20, seed=5)


def test_held_out_choice_of_the_first_release():
    """Scores are only comparable over time on the same prompts: these must never change."""
    assert [HELD_OUT[index]["prompt"] for index in range(0, 600, 100)] == [
        "a painting of a cross",
        "a tidy photo of a square and a circle",
        "a clear drawing of three squares",
        "a plain sketch of a green cross",
        "a good drawing of a circle below a cross",
        "a simple sketch of a yellow triangle and a red cross",
    ]


def test_too_many_held_out_prompts_are_refused():
    held_out = sum(is_held_out(entry) for entry in prompts("single_object"))
    assert len(held_out_prompts(held_out)) == 6 * held_out
    with pytest.raises(ValueError, match=f"'single_object' has only {held_out} held-out prompts, {held_out + 1}"):
        held_out_prompts(held_out + 1)


def test_training_sample_follows_the_tag_weights_and_the_split():
    sample = sample_metadata(np.random.default_rng(0), 4000)
    assert not any(is_held_out(entry) for entry in sample)
    for tag, weight in TAG_WEIGHTS.items():
        assert abs(np.mean([entry["tag"] == tag for entry in sample]) - weight) < 0.03
    assert sample_metadata(np.random.default_rng(0), 30) == sample_metadata(np.random.default_rng(0), 30)
    assert sample_metadata(np.random.default_rng(0), 30) != sample_metadata(np.random.default_rng(1), 30)

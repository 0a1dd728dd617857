"""GenEval's rules: the published test set to the letter, and a training set that shares no meaning with it."""

from collections import Counter

import pytest

from rtdmd_lightning.geneval.prompts import TRAINING_SHARES, meaning, test_prompts, training_prompts
from rtdmd_lightning.geneval.score import geneval_score
from rtdmd_lightning.geneval.vocabulary import COCO_CLASSES, COLORS, RELATIONS
from rtdmd_lightning.rewards.geneval import check_metadata

test_prompts.__test__ = False  # it is not a test, whatever its name


@pytest.fixture(scope="module")
def test_set():
    return test_prompts()


@pytest.fixture(scope="module")
def training_set():
    return training_prompts(2000)


def texts(entries: list[dict], tag: str) -> list[str]:
    return [entry["prompt"].removeprefix("a photo of ") for entry in entries if entry["tag"] == tag]


def test_the_published_number_of_prompts_of_every_tag(test_set):
    assert len({entry["prompt"] for entry in test_set}) == len(test_set) == 553
    assert Counter(entry["tag"] for entry in test_set) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip


def test_published_prompts_from_beginning_to_end(test_set):
    """What public reports on GenEval show, in the published order. One draw too many and all that follow would differ."""
    assert texts(test_set, "single_object")[:3] == ["a bench", "a cow", "a bicycle"]
    assert texts(test_set, "two_object")[:3] == [
        "a bench and a sports ball", "a toothbrush and a snowboard", "a toaster and an oven",
    ]  # fmt: skip
    assert texts(test_set, "counting")[0] == "two clocks"
    assert {"three buses", "four knifes", "two sheeps", "three persons"} <= set(texts(test_set, "counting"))
    assert texts(test_set, "colors")[:3] == ["a blue fire hydrant", "a pink car", "a purple cup"]
    assert texts(test_set, "position")[0] == "a dog right of a teddy bear"
    assert texts(test_set, "position")[-1] == "a couch left of a toaster"
    assert texts(test_set, "color_attr")[0] == "a purple wine glass and a black apple"
    assert texts(test_set, "color_attr")[-1] == "a blue pizza and a yellow baseball glove"


def test_the_published_form_of_the_metadata(test_set):
    by_prompt = {entry["prompt"]: entry for entry in test_set}
    assert list(test_set[0].items()) == [
        ("tag", "single_object"), ("include", [{"class": "bench", "count": 1}]), ("prompt", "a photo of a bench"),
    ]  # fmt: skip
    assert by_prompt["a photo of two clocks"] == {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    }
    assert by_prompt["a photo of a dog right of a teddy bear"]["include"] == [
        {"class": "teddy bear", "count": 1},
        {"class": "dog", "count": 1, "position": ["right of", 0]},
    ]
    assert by_prompt["a photo of a purple wine glass and a black apple"]["include"] == [
        {"class": "wine glass", "count": 1, "color": "purple"},
        {"class": "apple", "count": 1, "color": "black"},
    ]


def test_training_asks_for_nothing_that_the_test_asks_for(test_set, training_set):
    assert len(training_set) == 2000
    assert not {meaning(entry) for entry in test_set} & {meaning(entry) for entry in training_set}


def test_training_is_by_the_same_rules_in_the_published_proportions(training_set):
    counts = Counter(entry["tag"] for entry in training_set)
    assert counts.keys() == TRAINING_SHARES.keys()
    for tag, share in TRAINING_SHARES.items():
        assert counts[tag] / 2000 == pytest.approx(share / 17, abs=0.04)
    objects = [wanted for entry in training_set for wanted in entry["include"]]
    assert {wanted["class"] for wanted in objects} == set(COCO_CLASSES)
    assert {wanted["color"] for wanted in objects if "color" in wanted} == set(COLORS)
    assert "person" not in {wanted["class"] for wanted in objects if "color" in wanted}
    assert {wanted["position"][0] for wanted in objects if "position" in wanted} == set(RELATIONS)
    assert {wanted["count"] for wanted in objects} == {1, 2, 3, 4}


def test_every_entry_can_be_scored(test_set, training_set):
    for entry in [*test_set, *training_set]:
        check_metadata(entry)
        assert geneval_score([], entry).soft == 0


def test_training_is_the_same_every_time(training_set):
    assert training_prompts(200) != training_prompts(200, seed=1)
    assert training_prompts(2000) == training_set


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("left of", "cat", "dog"), ("right of", "dog", "cat"), True),
        (("above", "cat", "dog"), ("below", "dog", "cat"), True),
        (("left of", "cat", "dog"), ("left of", "dog", "cat"), False),
        (("left of", "cat", "dog"), ("above", "cat", "dog"), False),
    ],
)
def test_a_mirrored_relation_means_the_same(one, other, same):
    def position(relation, placed, target):
        include = [{"class": target, "count": 1}, {"class": placed, "count": 1, "position": [relation, 0]}]
        return {"tag": "position", "include": include}

    assert (meaning(position(*one)) == meaning(position(*other))) == same


def test_objects_in_another_order_mean_the_same_and_swapped_colours_do_not():
    cat, dog = {"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}
    entry = {"tag": "color_attr", "include": [cat, dog]}
    assert meaning(entry) == meaning(entry | {"include": [dog, cat]})
    assert meaning(entry) != meaning(entry | {"include": [cat | {"color": "blue"}, dog | {"color": "red"}]})

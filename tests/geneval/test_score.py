"""Every branch of GenEval's score on hand-made detections: the terms of METHOD section 6, written out."""

import pytest

from rtdmd_lightning.geneval.score import MAX_OBJECTS_PER_CLASS, Detection, GenEvalScore, geneval_score
from rtdmd_lightning.utils.errors import UserError

LEFT, MIDDLE, RIGHT = 5, 50, 95


def seen(label: str, color: str = "red", x: float = LEFT, y: float = 50, score: float = 0.9) -> Detection:
    """A box of 10 by 10 pixels centred at (x, y)."""
    return Detection(label, color, (x - 5, y - 5, x + 5, y + 5), score)


def want(label: str, count: int = 1, **more) -> dict:
    return {"class": label, "count": count} | more


def score(detections: list[Detection], *include: dict) -> GenEvalScore:
    return geneval_score(detections, {"include": list(include)})


def soft(*terms: float):
    return pytest.approx(sum(terms) / len(terms))


def assert_wrong(verdict: GenEvalScore, *terms: float) -> None:
    assert not verdict.strict
    assert verdict.soft == soft(*terms)


@pytest.mark.parametrize(
    ("wanted", "found", "term"), [(1, 0, 0), (3, 1, 1 / 3), (3, 2, 2 / 3), (3, 4, 2 / 3), (2, 4, 0), (1, 3, -1)]
)
def test_count_off(wanted, found, term):
    """One term; too many cost as much as too few, without a floor."""
    assert_wrong(score([seen("dog")] * found, want("dog", wanted)), term)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_count_right(count):
    assert score([seen("dog")] * count, want("dog", count)) == GenEvalScore(soft=1, strict=True)


def test_count_off_where_a_colour_was_asked_for_adds_one_zero():
    """Although both dogs that were found have the right colour."""
    assert_wrong(score([seen("dog"), seen("dog")], want("dog", 3, color="red")), 2 / 3, 0)


def test_count_off_where_a_position_was_asked_for_adds_one_zero():
    """Although both dogs that were found stand right."""
    detections = [seen("cat", x=RIGHT), seen("dog"), seen("dog")]
    assert_wrong(score(detections, want("cat"), want("dog", 3, position=["left of", 0])), 1, 2 / 3, 0)


def test_count_off_where_both_were_asked_for_adds_only_one_zero():
    detections = [seen("cat", x=RIGHT), seen("dog"), seen("dog")]
    assert_wrong(score(detections, want("cat"), want("dog", 3, color="red", position=["left of", 0])), 1, 2 / 3, 0)


@pytest.mark.parametrize(("colors", "term"), [("red blue blue", 1 / 3), ("red red blue", 2 / 3), ("blue blue blue", 0)])
def test_colours_partly_wrong(colors, term):
    assert_wrong(score([seen("dog", color) for color in colors.split()], want("dog", 3, color="red")), 1, term)


def test_colours_right():
    verdict = score([seen("dog"), seen("dog")], want("dog", 2, color="red"))
    assert verdict == GenEvalScore(soft=1, strict=True)


def test_relation_held():
    verdict = score([seen("cat", x=RIGHT), seen("dog", x=LEFT)], want("cat"), want("dog", position=["left of", 0]))
    assert verdict == GenEvalScore(soft=1, strict=True)


def test_relation_broken_gives_a_zero_and_a_one():
    """Terms 1 (cat), 1 (dog), 0 and 1: the 1 comes either way."""
    detections = [seen("cat", x=LEFT), seen("dog", x=RIGHT)]
    assert_wrong(score(detections, want("cat"), want("dog", position=["left of", 0])), 1, 1, 0, 1)


def test_two_broken_pairs_give_one_zero():
    detections = [seen("cat", x=LEFT), seen("dog", x=RIGHT), seen("dog", x=MIDDLE)]
    assert_wrong(score(detections, want("cat"), want("dog", 2, position=["left of", 0])), 1, 1, 0, 1)


def test_the_relation_must_hold_for_every_pair():
    """One of two dogs, then one of two cats, stands on the wrong side."""
    cats = [seen("cat", x=MIDDLE), seen("cat", x=RIGHT)]
    dogs = [seen("dog", x=LEFT), seen("dog", x=LEFT, y=20)]
    include = want("cat", 2), want("dog", 2, position=["left of", 0])
    assert score([*cats, *dogs], *include).strict
    assert_wrong(score([*cats, dogs[0], seen("dog", x=75)], *include), 1, 1, 0, 1)
    assert_wrong(score([seen("cat", x=LEFT, y=80), cats[1], *dogs], *include), 1, 1, 0, 1)


def test_position_with_the_targets_count_off():
    """The cats' own term, the dog's count, and a zero for want of a target."""
    detections = [seen("cat", x=RIGHT), seen("dog")]
    assert_wrong(score(detections, want("cat", 2), want("dog", position=["left of", 0])), 1 / 2, 1, 0)


def test_position_with_the_targets_colour_off():
    """A cat of the wrong colour is no target, wherever it is: 1 0 for it, 1 0 for the dog."""
    detections = [seen("cat", "blue", x=RIGHT), seen("dog")]
    assert_wrong(score(detections, want("cat", color="red"), want("dog", position=["left of", 0])), 1, 0, 1, 0)


def test_position_with_the_targets_own_relation_broken():
    """What stands wrong itself is no target: cat 1, dog 1 0 1, cow 1 0, though the cow is where it should be."""
    detections = [seen("cat", x=LEFT), seen("dog", x=MIDDLE), seen("cow", x=RIGHT)]
    include = want("cat"), want("dog", position=["left of", 0]), want("cow", position=["right of", 1])
    assert_wrong(score(detections, *include), 1, 1, 0, 1, 1, 0)


def test_a_wrong_colour_spares_the_position_its_term():
    """The relation is broken too, but is not looked at: cat 1, dog 1 (count) and 0 (colour)."""
    detections = [seen("cat", x=LEFT), seen("dog", "blue", x=RIGHT)]
    assert_wrong(score(detections, want("cat"), want("dog", color="red", position=["left of", 0])), 1, 1, 0)


def test_colour_and_position_right():
    detections = [seen("cat", x=RIGHT), seen("dog", "red")]
    verdict = score(detections, want("cat"), want("dog", color="red", position=["left of", 0]))
    assert verdict == GenEvalScore(soft=1, strict=True)
    broken = [seen("cat", x=LEFT), seen("dog", "red", x=RIGHT)]
    assert_wrong(score(broken, want("cat"), want("dog", color="red", position=["left of", 0])), 1, 1, 1, 0, 1)


def test_other_classes_are_ignored():
    assert score([seen("dog"), seen("cat"), seen("cat")], want("dog")).strict


def test_one_wrong_entry_is_enough_to_fail_strictly():
    """Also where the last one is right again."""
    assert_wrong(score([seen("cat")], want("dog"), want("cat")), 0, 1)
    assert_wrong(score([seen("dog")], want("dog"), want("cat")), 1, 0)


def test_at_most_sixteen_objects_of_a_class_count():
    """Twenty dogs are seen as sixteen; fifteen are fifteen; another class has its own sixteen."""
    assert MAX_OBJECTS_PER_CLASS == 16
    assert score([seen("dog")] * 20, want("dog", 16)).strict
    assert_wrong(score([seen("dog")] * 20, want("dog", 20)), 16 / 20)
    assert_wrong(score([seen("dog")] * 15, want("dog", 16)), 15 / 16)
    assert score([seen("dog")] * 20 + [seen("cat")], want("dog", 16), want("cat")).strict


def test_the_sixteen_most_confident_objects_count():
    """Wherever they stand in the list."""
    red, blue = [seen("dog", "red", score=0.8)] * 16, [seen("dog", "blue", score=0.4)] * 4
    for detections in (red + blue, blue + red, blue[:2] + red + blue[2:]):
        assert score(detections, want("dog", 16, color="red")).strict
    doubtful = [seen("dog", "red", score=0.3)] * 16
    assert_wrong(score(doubtful + blue, want("dog", 16, color="red")), 1, 12 / 16)


@pytest.mark.parametrize("target", [1, 2, -1])
def test_a_position_must_point_to_an_earlier_entry(target):
    """To itself, past the end and from the end: told, also where the count is off and the position is not looked at."""
    include = want("cat"), want("dog", position=["left of", target])
    for detections in ([seen("cat", x=RIGHT), seen("dog")], []):
        with pytest.raises(UserError, match="must point to an earlier entry"):
            score(detections, *include)


def test_metadata_without_entries_are_told():
    with pytest.raises(UserError, match="at least one object"):
        score([seen("cat")])

"""The picture beside the table: which image stands where, and what is written at it."""

import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from rtdmd_lightning.data.prompts import spread
from rtdmd_lightning.evaluation.images import read_image
from rtdmd_lightning.evaluation.settings import Gallery
from rtdmd_lightning.evaluation.side_by_side import RIGHT, WRONG, save_side_by_side, write_side_by_side
from tests.support.scores import PROMPTS, SCORES, draw_files, hand_made

WHITE = Image.new("RGB", (8, 8), "white")


def near(picture, color):
    return (picture - torch.tensor(color)[:, None, None]).abs().amax(dim=0) < 0.01


def place(picture, color):
    """The mean `(y, x)` of a colour."""
    return near(picture, color).nonzero().double().mean(dim=0).tolist()


def centre(picture, color):
    """`(y, x)` of an image of one colour."""
    assert near(picture, color).sum() > 40 * 40
    return place(picture, color)


@pytest.mark.parametrize("side", [16, 200])  # enlarged with hard edges; made smaller
def test_a_row_for_every_entry_and_a_column_for_every_prompt(tmp_path, side):
    results = hand_made()
    draw_files(results, tmp_path, side)
    write_side_by_side(results.sets["held-out"], tmp_path, Gallery(side=100, side_by_side=3), tmp_path / "picture.png")
    picture = read_image(tmp_path / "picture.png")[:3]
    prompts = (1, 3)  # and the first, of which one image is as black as the letters
    places = {(e, i): centre(picture, (e / 3, i / 4, 0)) for e in range(len(SCORES)) for i in prompts}
    for e in range(len(SCORES)):
        assert places[e, 1][0] == pytest.approx(places[e, 3][0], abs=1) and places[e, 1][1] < places[e, 3][1]
    for i in prompts:
        assert places[0, i][0] < places[1, i][0] < places[2, i][0]
        assert places[0, i][1] == pytest.approx(places[2, i][1], abs=1)


def test_of_several_images_of_a_prompt_the_first_is_shown(tmp_path):
    several = {entry: {reward: of_one * 2 for reward, of_one in scores.items()} for entry, scores in SCORES.items()}
    for name, results in {"one": hand_made(), "several": hand_made(scores=several)}.items():
        draw_files(results, tmp_path / name)
        write_side_by_side(results.sets["held-out"], tmp_path / name, Gallery(), tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "several.png").read_bytes()


def test_right_and_wrong_images_have_frames(tmp_path):
    save_side_by_side({"a": [WHITE, WHITE]}, ["b", "c"], tmp_path / "marked.png", right={"a": [True, False]})
    picture = read_image(tmp_path / "marked.png")[:3]
    (_, right), (_, wrong) = (place(picture, to_rgb(color)) for color in (RIGHT, WRONG))
    assert right < wrong
    save_side_by_side({"a": [WHITE, WHITE]}, ["b", "c"], tmp_path / "plain.png")
    assert not near(read_image(tmp_path / "plain.png")[:3], to_rgb(RIGHT)).any()


def test_the_verdict_of_a_reward_is_whether_its_score_is_1(tmp_path):
    results = hand_made()
    draw_files(results, tmp_path)
    result, marked, wanted = results.sets["held-out"], tmp_path / "marked.png", tmp_path / "wanted.png"
    write_side_by_side(result, tmp_path, Gallery(), marked, verdict="strict")
    rows = {entry: [Image.open(tmp_path / file) for file in files] for entry, files in result.files.items()}
    right = {"teacher": (1, 0, 1, 0), "cold | start": (1, 0, 1, 0), "<RTDMD>": (1, 1, 0, 1)}
    save_side_by_side(
        rows, PROMPTS, wanted, right={entry: [bool(x) for x in of_one] for entry, of_one in right.items()}
    )
    assert marked.read_bytes() == wanted.read_bytes()


def test_names_and_prompts_are_written_as_they_are(tmp_path):
    """Also those that matplotlib would read as formulas; of a long one its beginning."""

    def ink(name, prompt):
        save_side_by_side({name: [WHITE]}, [prompt], tmp_path / "one.png")
        return 1 - read_image(tmp_path / "one.png")[:3].mean(dim=0)

    blank, named, prompted = ink(" ", " "), ink("a name", " "), ink(" ", "$5 or $_6^{")
    assert blank.sum() == 0 and named.sum() > 0 and prompted.sum() > 0
    assert torch.equal(ink(" ", "word " * 100), ink(" ", "word " * 200))
    assert not torch.equal(ink(" ", "word"), ink(" ", "other"))


def test_the_same_picture_again_is_the_same_file(tmp_path):
    for name in ("one.png", "two.png"):
        save_side_by_side({"a": [WHITE, WHITE]}, ["b", "c"], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_spread():
    assert spread(5, 9) == [0, 1, 2, 3, 4] and spread(101, 3) == [0, 50, 100]

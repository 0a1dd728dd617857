"""Where stage 2 finds the two files of stage 1."""

import pytest

from rtdmd_lightning.modules.cold_start import cold_start_files
from rtdmd_lightning.utils.errors import UserError

OURS, THEIRS = "fake_score.pt", "fake_score_net.pt"


@pytest.mark.parametrize(
    ("there", "found"), [([OURS], OURS), ([THEIRS], THEIRS), ([OURS, THEIRS], OURS)], ids=["ours", "theirs", "both"]
)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_fake_score_beside_the_generator_is_ours_before_the_authors(there, found, given, tmp_path):
    generator = tmp_path / "generator_ema.pt"
    for name in (generator.name, *there):
        (tmp_path / name).touch()
    cold_start = tmp_path if given == "folder" else generator
    assert cold_start_files(str(cold_start), None) == (str(generator), str(tmp_path / found))


def test_the_fake_score_that_is_named_is_the_one(tmp_path):
    for name in ("generator_ema.pt", OURS, THEIRS):
        (tmp_path / name).touch()
    assert cold_start_files(str(tmp_path), str(tmp_path / THEIRS))[1] == str(tmp_path / THEIRS)
    assert cold_start_files(str(tmp_path), "base")[1] is None


def test_neither_is_an_error_that_names_both(tmp_path):
    (tmp_path / "generator_ema.pt").touch()
    with pytest.raises(UserError, match=rf"{OURS} or .*{THEIRS}.*model\.cold_start_fake"):
        cold_start_files(str(tmp_path), None)


def test_a_named_fake_score_that_is_not_there_is_not_replaced(tmp_path):
    for name in ("generator_ema.pt", OURS):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"other\.pt"):
        cold_start_files(str(tmp_path), str(tmp_path / "other.pt"))

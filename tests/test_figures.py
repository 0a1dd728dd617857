"""The README's figure of the method is the one that its script draws."""

import runpy

from tests.support.tiny import REPOSITORY

FIGURES = REPOSITORY / "notebooks/figures"


def test_the_committed_figure_is_what_the_script_draws(tmp_path):
    runpy.run_path(str(FIGURES / "method.py"))["main"](tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in FIGURES.glob("*.svg")}
    assert drawn["method_light.svg"] != drawn["method_dark.svg"]

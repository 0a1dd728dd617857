"""The pair of processes that other tests share."""

import pytest

from tests.support import pair
from tests.support.pair import Pair

pytestmark = pytest.mark.slow

DIES = """
import os
if "PAIR_PORT" in os.environ:
    raise SystemExit("no process today")
"""


def test_a_process_that_dies_at_its_start_is_told_at_once(tmp_path, monkeypatch):
    """Also that a PYTHONPATH reaches it: what kills it lies there."""
    (tmp_path / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(pair, "TIMEOUT", 60)
    both = Pair(tmp_path / "log.txt")
    with pytest.raises(AssertionError, match="no process today"):
        both.fit("--help")
    assert both._launcher.poll() == 1  # not killed: it had ended

"""JSON that somebody else wrote, or half of it."""

import pytest

from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.json_text import read_rows


def test_rows_are_the_whole_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"step": 1}\n[2, "\u2028"]\n')
    assert read_rows(path) == [{"step": 1}, [2, "\u2028"]]
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_rows(path) == [{"step": 1}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl line 1 is not JSON"):
        read_rows(path)

"""What a run is refused with, and whether two runs ended alike."""

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.utils.errors import readable_errors


def refused(capsys, *arguments: str) -> str:
    """The sentence on stderr."""
    with pytest.raises(SystemExit) as exit_, readable_errors():
        fit.main(list(arguments))
    assert exit_.value.code == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert "Union" not in sentences[0] and len(sentences[0]) < 400  # not the parser's dump of the whole configuration
    return sentences[0]


def assert_identical(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_identical(a, b)
    else:
        assert one == other

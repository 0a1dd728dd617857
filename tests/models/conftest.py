"""The tiny pipelines of all families but SD3, whose folder all tests share."""

import pytest

from tests.support.tiny_backbones import save_all


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("families"))

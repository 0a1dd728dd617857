"""The toy world's training with models that train in milliseconds."""

import pytest

from rtdmd_lightning.pretraining import teacher, vae


@pytest.fixture
def small(monkeypatch):
    """Small sizes for teacher and autoencoder; what they are made of stays as it is."""
    sizes = {"HIDDEN": 16, "HEAD_WIDTH": 16, "LAYERS": 2, "BATCH_SIZE": 8, "STOCK_EVERY": 3, "STOCK_BATCH": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(teacher, name, value)
    build = vae.build_vae
    monkeypatch.setattr(vae, "BATCH_SIZE", 8)
    monkeypatch.setattr(vae, "build_vae", lambda: build(channels=(8, 8, 8), norm_num_groups=4))

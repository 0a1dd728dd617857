"""The model code of both packages imports, is the packages' own, and leaves nothing behind."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rtdmd_lightning.rewards import compat
from rtdmd_lightning.utils.errors import UserError


@pytest.mark.slow
def test_both_import_in_a_fresh_process_and_nothing_lent_stays():
    code = """
import sys
import transformers.modeling_utils
before = set(vars(transformers.modeling_utils))
from rtdmd_lightning.rewards import compat
assert not {"hpsv2", "ImageReward", "open_clip", "timm"} & set(sys.modules), "compat imports on demand"
assert compat.hpsv2_open_clip().CLIP.__module__ == "hpsv2.src.open_clip.model"
assert compat.image_reward().ImageReward.__module__ == "ImageReward.ImageReward"
lent = {"hpsv2", "turtle", "ImageReward", "ImageReward.models", "fairscale", "fairscale.nn"}
assert not lent & set(sys.modules), lent & set(sys.modules)
assert set(vars(transformers.modeling_utils)) == before
assert compat.image_reward() is compat.image_reward()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning:timm", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "timm" not in done.stderr


def test_the_tokenizer_is_the_packages_own_with_open_clips_vocabulary():
    import open_clip

    fork = sys.modules[compat.hpsv2_open_clip().tokenize.__module__]
    assert fork.__spec__.origin.endswith("hpsv2/src/open_clip/tokenizer.py")
    texts = ["a photo of 2 cats, isn't it?", "Ünïcode &amp; entities   and  spaces", "", "word " * 100]
    assert fork.tokenize(texts).tolist() == open_clip.tokenize(texts).tolist()


def test_what_the_lent_mask_masks_gets_no_attention():
    """In the model's dtype, where the first position of the second row is left out."""
    network = SimpleNamespace(dtype=torch.float64)
    added = compat._invert_attention_mask(network, torch.tensor([[1, 1], [0, 1]]))
    assert added.shape == (2, 1, 1, 2) and added.dtype == torch.float64
    assert added.softmax(-1).flatten().tolist() == [0.5, 0.5, 0, 1]


def test_a_package_that_is_not_installed_is_told():
    with pytest.raises(UserError, match="no_such_package is not installed: pip install --no-deps"):
        compat._bare_package("no_such_package")


def test_bert_tokenizer(tmp_path):
    """`bert-base-uncased` lower-cases; the two new tokens come after its vocabulary."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = compat.bert_tokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer("A cats dog").input_ids == [2, 5, 6, 7, 1, 3]
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [8, 9]
    assert (tokenizer.bos_token, tokenizer.enc_token_id, len(tokenizer)) == ("[DEC]", 9, 10)


def test_a_vocabulary_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        compat.bert_tokenizer(str(tmp_path / "none.txt"))

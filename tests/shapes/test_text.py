"""The toy world's tokenizer."""

import os
import subprocess
import sys

import pytest

from rtdmd_lightning.geneval.vocabulary import TAGS
from rtdmd_lightning.shapes.prompts import prompts
from rtdmd_lightning.shapes.text import MAX_PROMPT_TOKENS, build_silent_t5, build_tokenizer
from tests.support.tiny import REPOSITORY

PRINT_IDS = """
from rtdmd_lightning.shapes.text import build_tokenizer
tokenizer = build_tokenizer()
print(sorted(tokenizer.get_vocab().items()), tokenizer.backend_tokenizer.to_str())
"""


@pytest.mark.slow
def test_every_process_gives_every_token_the_same_id():
    """A resumed teacher rebuilds its tokenizer; one from BPE training differed between processes."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT_IDS], env=environment, text=True, capture_output=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(outputs) == 1


def test_every_word_is_one_token_and_every_prompt_fits():
    tokenizer = build_tokenizer()
    texts = [entry["prompt"] for tag in TAGS for entry in prompts(tag)]
    words = {word for text in texts for word in text.split()}
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)  # with the start and the end
    encoded = tokenizer(texts[::50], padding="max_length", max_length=MAX_PROMPT_TOKENS).input_ids
    assert {len(ids) for ids in encoded} == {MAX_PROMPT_TOKENS}
    assert tokenizer.model_max_length == MAX_PROMPT_TOKENS
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_the_silent_t5_says_nothing():
    encoder, tokenizer = build_silent_t5()
    assert encoder(tokenizer(["a red circle"], return_tensors="pt").input_ids)[0].abs().max() == 0

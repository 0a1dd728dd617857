"""The toy world's text side: a CLIP tokenizer over its words and two small CLIP text encoders.

SD3's third text encoder, T5, is filled with one that says nothing: its final norm's weight is zero, so its output is the
zeros that diffusers itself feeds when the T5 is dropped. That keeps the folder loadable by the plain
`StableDiffusion3Pipeline.from_pretrained`, which insists on the part.
"""

from itertools import pairwise

import torch
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rtdmd_lightning.shapes.prompts import known_words

MAX_PROMPT_TOKENS = 13
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
ENCODER_WIDTH = 64
JOINT_WIDTH = 2 * ENCODER_WIDTH


def build_tokenizer() -> CLIPTokenizer:
    """A BPE in which every word of the world's prompts is one token.

    Written down rather than trained: a trainer breaks ties in another way in every process, and a resumed teacher must find
    its embeddings where it left them. Each word adds the merges that it still lacks. They rank below all earlier ones, so
    the words before it are spelled as they were.
    """
    words = sorted(known_words())
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _merge([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in ranks)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(ranks), model_max_length=MAX_PROMPT_TOKENS)


def _merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: merge the neighbours of the lowest rank until none has a rank."""
    while known := [(ranks[pair], index) for index, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        _, index = min(known)
        pieces = [*pieces[:index], pieces[index] + pieces[index + 1], *pieces[index + 2 :]]
    return pieces


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained encoder. SD3 reads the last but one layer's tokens and the last layer's pooled projection."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=ENCODER_WIDTH,
        intermediate_size=4 * ENCODER_WIDTH,
        projection_dim=ENCODER_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_silent_t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 whose output is zero for every prompt, and a tokenizer to go with it."""
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=JOINT_WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder, tokenizer

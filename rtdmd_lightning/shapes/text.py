"""The embedded world's text side: a CLIP tokenizer over its words and two small CLIP text encoders.

SD3's third text encoder, T5, is filled with one that says nothing: its final norm's weight is zero, so its output is the
zeros that diffusers itself feeds when the T5 is dropped. That keeps the folder loadable by the plain
`StableDiffusion3Pipeline.from_pretrained`, which insists on the part.
"""

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rtdmd_lightning.shapes.prompts import TAGS, prompts

MAX_PROMPT_TOKENS = 13
ENCODER_WIDTH = 64
JOINT_WIDTH = 2 * ENCODER_WIDTH


def build_tokenizer() -> CLIPTokenizer:
    """A BPE over the world's prompts in which every word of theirs is one token."""
    corpus = (metadata["prompt"] for tag in TAGS for metadata in prompts(tag))
    tokenizer = CLIPTokenizer().train_new_from_iterator(corpus, vocab_size=600)
    tokenizer.model_max_length = MAX_PROMPT_TOKENS
    return tokenizer


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

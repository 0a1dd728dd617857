"""HPSv3 on a tiny random Qwen2-VL: the published keys, the package's pooling and positions, batches.

What `facts/hpsv3.json` lists is read off the published package (transformers 4.45's Qwen2-VL-7B, its head, the vocabulary
of the tokenizer plus one), not off the file itself.
"""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2VLConfig, Qwen2VLModel, Qwen2VLProcessor, Qwen2VLVideoProcessor

from rtdmd_lightning.rewards import hpsv3
from rtdmd_lightning.rewards.hpsv3 import FILENAME, HPSv3Network, HPSv3Reward, current_keys
from rtdmd_lightning.rewards.state import build_empty
from rtdmd_lightning.utils.errors import UserError
from tests.support import qwen
from tests.support.scorers import pictures, published_shapes, to_pil

PROMPTS = ["a red cube", "two dogs in the snow, with a {brace}"]


def config(tokens: int) -> Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": tokens, "rope_parameters": rope}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Qwen2VLConfig(text_config=text, vision_config=vision, **qwen.special_ids())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Configuration and processor as in Qwen2-VL's folder: the vocabulary is padded beyond the tokenizer's length."""
    folder = tmp_path_factory.mktemp("base")
    processor = qwen.processor(Qwen2VLProcessor, Qwen2VLVideoProcessor, patch_size=14)
    processor.save_pretrained(folder)
    config(len(processor.tokenizer) + 20).save_pretrained(folder)
    return folder


def old_key(key: str) -> str:
    """Transformers 4.45's name of a key."""
    return key.removeprefix("model.") if ".visual." in key else key.replace(".language_model", "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a checkpoint under 4.45's names, with `lm_head`, the body in bfloat16 and the head in float32."""
    folder = tmp_path_factory.mktemp("hpsv3")
    torch.manual_seed(0)
    tokens = len(qwen.tokenizer()) + 1
    network = HPSv3Network(config(tokens))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {old_key(k): t if "rm_head" in k else t.bfloat16() for k, t in network.state_dict().items()}
    save_file(state | {"lm_head.weight": torch.zeros(tokens, 16)}, folder / FILENAME)
    return folder


@pytest.fixture
def reward(base, weights):
    """In float32, so that sums in another order do not show."""
    reward = HPSv3Reward(str(weights), base=str(base), batch_size=2)
    reward.to(torch.device("cpu"))
    reward._network.float()
    return reward


def test_the_full_architecture_has_the_published_tensors():
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 151658, "rope_parameters": rope}
    full = Qwen2VLConfig(text_config=text, vision_config={"hidden_size": 3584, "embed_dim": 1280, "depth": 32})
    state = build_empty(lambda: HPSv3Network(full)).state_dict()
    published = published_shapes("hpsv3.json")
    del published["lm_head.weight"]  # in the file, of no use to a score
    assert {key: list(tensor.shape) for key, tensor in state.items()} == current_keys(published)


def test_keys_of_both_layouts(weights):
    """Old keys become the network's own, and those are left alone."""
    today = HPSv3Network(config(30)).state_dict()
    assert current_keys({old_key(key): key for key in today}) == {key: key for key in today}
    assert current_keys(dict.fromkeys(today)) == dict.fromkeys(today)


def test_the_score_is_the_heads_mean_at_the_reward_token(reward):
    """Written out as the published package does: embeddings, image features in their places, positions 0, 1, 2, …"""
    images = pictures(2, 300)
    scores = reward.score(images, PROMPTS, [{}, {}])
    assert scores.shape == (2,) and scores.dtype == torch.float32
    body: Qwen2VLModel = reward._network.model
    token_id = len(qwen.tokenizer())
    for image, prompt, score in zip(images, PROMPTS, scores, strict=True):
        question = hpsv3.INSTRUCTION.read_text(encoding="utf-8").replace("{text_prompt}", prompt)
        text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        inputs = reward._processor(text=[text], images=[to_pil(image)], return_tensors="pt")
        tokens = inputs["input_ids"]
        assert (tokens == token_id).sum() == 1
        with torch.no_grad():
            features = body.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
            embeddings = body.language_model.embed_tokens(tokens)
            embeddings[tokens == body.config.image_token_id] = features
            positions = torch.arange(tokens.shape[1]).view(1, 1, -1).expand(3, 1, -1)
            hidden = body.language_model(inputs_embeds=embeddings, position_ids=positions).last_hidden_state
            mean = reward._network.rm_head(hidden[0, tokens[0].tolist().index(token_id)])[0]
        torch.testing.assert_close(score, mean, rtol=1e-4, atol=1e-4)
    assert (scores[0] - scores[1]).abs() > 1e-2


@pytest.mark.parametrize(
    ("size", "patches"), [(512, (32, 32)), (64, (32, 32)), ((600, 400), (38, 26)), ((300, 200), (40, 28))]
)
def test_every_image_is_seen_at_about_256_tiles(reward, size, patches):
    """A tile is 2 x 2 patches; 448 x 448 pixels for a square, for another shape rounded down from larger and up from smaller."""
    (grid,) = reward._inputs(pictures(1, size), PROMPTS[:1])["image_grid_thw"].tolist()
    assert grid == [1, *patches]


def test_batches_do_not_change_scores(reward):
    """Three pictures in batches of two, prompts of different lengths, against one at a time."""
    images, prompts = pictures(3, 64), [*PROMPTS, "x"]
    together = reward.score(images, prompts, [{}] * 3)
    alone = [reward.score(images[i : i + 1], prompts[i : i + 1], [{}]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_the_body_keeps_the_files_precision_and_the_head_is_float32(base, weights):
    reward = HPSv3Reward(str(weights / FILENAME), base=str(base))
    reward.to(torch.device("cpu"))
    assert reward._network.model.visual.patch_embed.proj.weight.dtype == torch.bfloat16
    assert reward._network.rm_head[0].weight.dtype == torch.float32
    assert reward.score(pictures(1, 64), PROMPTS[:1], [{}]).isfinite().all()
    assert not reward._network.training


def test_the_instruction_is_the_published_one():
    """The exact text, its trailing spaces included, that hpsv3 1.0.0 joins from two strings."""
    digest = hashlib.sha256(hpsv3.INSTRUCTION.read_bytes()).hexdigest()
    assert digest == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"


def test_a_prompt_with_the_reward_token_is_told(reward):
    with pytest.raises(UserError, match="must not hold"):
        reward.score(pictures(1, 64), ["give me <|Reward|>"], [{}])


def test_a_checkpoint_of_another_vocabulary_is_told(base, weights, tmp_path):
    network = HPSv3Network(config(5))
    save_file({old_key(key): tensor for key, tensor in network.state_dict().items()}, tmp_path / FILENAME)
    with pytest.raises(UserError, match="knows 5 tokens"):
        HPSv3Reward(str(tmp_path), base=str(base)).to(torch.device("cpu"))

"""CLIPScore: does the picture show what the prompt says? (METHOD section 6)"""

from rtdmd_lightning.rewards.clip_models import ClipLogitReward


class ClipScoreReward(ClipLogitReward):
    """Cosine of CLIP ViT-L/14's embeddings times logit_scale / 100, which is the cosine itself; about 0.29 for a good picture.

    On the embedded world: `weights: checkpoints/tiny-clip`.
    """

    name = "clipscore"
    published = "openai/clip-vit-large-patch14"
    published_processor = published
    divisor = 100.0

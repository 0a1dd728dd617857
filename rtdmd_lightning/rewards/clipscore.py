"""CLIPScore: does the picture show what the prompt says? (METHOD section 6)"""

from rtdmd_lightning.rewards.clip_models import ClipLogitReward
from rtdmd_lightning.rewards.precision import TowerDtype
from rtdmd_lightning.rewards.preprocess import Resize


class ClipScoreReward(ClipLogitReward):
    """Cosine of CLIP ViT-L/14's embeddings times logit_scale / 100, which is the cosine itself; about 0.29 for a good picture.

    On the toy world: `weights: checkpoints/tiny-clip`.

    Args:
        weights: folder or hub id of a `CLIPModel`; without it see `weights.locate`.
        processor: folder or hub id of the image processor and tokenizer, where the model's folder does not hold them.
        resize: of the pictures, antialiased: bilinear is the paper's, in training and in evaluation (METHOD section 5.1);
            bicubic is that of the published processor.
        dtype: of the network: bfloat16 and float16 take half its memory; `rewards/README.md` has what that does to the scores.
    """

    name = "clipscore"
    published = "openai/clip-vit-large-patch14"
    published_processor = published
    divisor = 100.0

    def __init__(
        self,
        weights: str | None = None,
        processor: str | None = None,
        resize: Resize = "bilinear",
        dtype: TowerDtype = "float32",
    ) -> None:
        super().__init__(weights, processor, resize, dtype)

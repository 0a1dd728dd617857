"""PickScore: which picture would a person pick for the prompt? (METHOD section 6)"""

from rtdmd_lightning.rewards.clip_models import ClipLogitReward
from rtdmd_lightning.rewards.precision import TowerDtype
from rtdmd_lightning.rewards.preprocess import Resize


class PickScoreReward(ClipLogitReward):
    """Logit of PickScore_v1, a CLIP ViT-H/14, over 26: about 0.86 for a good picture; tables show the logit itself, about 22.

    The published model comes without a processor; it is that of the CLIP it was trained from.

    Args:
        weights: folder or hub id of a `CLIPModel`; without it see `weights.locate`.
        processor: folder or hub id of the image processor and tokenizer, where the model's folder does not hold them.
        resize: of the pictures, antialiased: bicubic is the published processor's, with which PickScores are reported;
            bilinear is the paper's where PickScore is back-propagated, and only there (METHOD section 5.1).
        dtype: of the network: bfloat16 and float16 take half its memory; `rewards/README.md` has what that does to the scores.
    """

    name = "pickscore"
    published = "yuvalkirstain/PickScore_v1"
    published_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    divisor = 26.0
    reported_scale = divisor

    def __init__(
        self,
        weights: str | None = None,
        processor: str | None = None,
        resize: Resize = "bicubic",
        dtype: TowerDtype = "float32",
    ) -> None:
        super().__init__(weights, processor, resize, dtype)

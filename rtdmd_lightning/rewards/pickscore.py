"""PickScore: which picture would a person pick for the prompt? (METHOD section 6)"""

from rtdmd_lightning.rewards.clip_models import ClipLogitReward


class PickScoreReward(ClipLogitReward):
    """Logit of PickScore_v1, a CLIP ViT-H/14, over 26: about 0.86 for a good picture; tables show the logit itself, about 22.

    The published model comes without a processor; it is that of the CLIP it was trained from.
    """

    name = "pickscore"
    published = "yuvalkirstain/PickScore_v1"
    published_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    divisor = 26.0
    reported_scale = divisor

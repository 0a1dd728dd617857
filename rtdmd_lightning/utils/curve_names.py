"""How the curves of a run are called. A name begins with its group; loggers sort groups, capitals first:

    Summary/        the few numbers by which one sees how a run goes
    eval/           held-out prompts: each reward's score, their weighted sums `trained` and `held_out`, the diversity
    eval_by_tag/    REWARD/TAG: the same scores of one tag's prompts
    fake_score/     that network's losses and gradient norms; in stage 1 one for each segment
    generator/      the generator's, likewise
    learning_rate/  of each
    policy/         clipped ratios and the like
    reward/         each reward's mean over the images that an update drew
    time/           seconds
    weight/         of the terms of a loss

`eval.jsonl` has the scores under the same names.
"""

SUMMARY = "Summary/"
EVALUATED = "eval/"
EVALUATED_BY_TAG = "eval_by_tag/"
OF_EVALUATIONS = (EVALUATED, EVALUATED_BY_TAG)


def score_name(curve: str) -> str:
    """`shapes` of `eval/shapes`, `shapes/counting` of `eval_by_tag/shapes/counting`; other names stay as they are."""
    return curve.partition("/")[2] if curve.startswith(OF_EVALUATIONS) else curve

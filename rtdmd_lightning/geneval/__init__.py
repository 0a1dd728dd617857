"""GenEval's vocabulary, prompts, relation rule and score, without any network."""

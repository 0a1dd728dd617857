"""Single mistakes that a person could make, each with the tests that ought to catch it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands once in the package's `file`, becomes `new`. `tests` are pytest's arguments."""

    file: str
    breaks: str
    old: str
    new: str
    tests: str


# fmt: off
MUTATIONS = [
    Mutation(
        "roles/stacked.py", "the first adapter's scale for all of a stack",
        "        if any(other != scale for other in others):", "        if False:",
        "tests/roles/test_stacked.py",
    ),
    Mutation(
        "roles/stacked.py", "inputs are not cast to autocast's dtype",
        "            x = x.to(torch.get_autocast_dtype(device))", "            pass",
        "tests/roles/test_stacked.py",
    ),
    Mutation(
        "roles/stacked.py", "layers do not share the selection",
        "            module.selection = selection", "            module.selection = Selection()",
        "tests/roles/test_stacked.py tests/roles/test_lora.py",
    ),
    Mutation(
        "modules/ratio.py", "every update is looked at",
        "is_first, self._is_first = self._is_first, False", "is_first = self._is_first",
        'tests/modules/test_first_ratio.py -m "not slow"',
    ),
    Mutation(
        "modules/ratio.py", "the clip range is taken twice",
        "largest <= clip_range:", "largest <= 2 * clip_range:",
        'tests/modules/test_first_ratio.py -m "not slow"',
    ),
    Mutation(
        "modules/optimization.py", "the decay ends a step late",
        "(max_steps - step) / self.decay_steps)", "(max_steps - step + 1) / self.decay_steps)",
        "tests/modules/test_settings.py",
    ),
    Mutation(
        "data/scoring.py", "scores are taken in the order they are ready",
        "        batches = [scores.result() for scores in self._scores]",
        "        batches = [scores.result() for scores in reversed(self._scores)]",
        "tests/data/test_scoring.py",
    ),
    Mutation(
        "data/scoring.py", "the images may be overwritten while they are scored",
        "            images.record_stream(self._stream)", "            pass",
        "tests/data/test_scoring.py",
    ),
    Mutation(
        "data/scoring.py", "a failure waits for the batches behind it",
        "                thread.shutdown(wait=False, cancel_futures=True)\n", "",
        "tests/data/test_scoring.py",
    ),
    Mutation(
        "utils/stopping.py", "the signal is obeyed in the step in which it is heard",
        'self._store.compare_set(key, "", str(step + 1))', 'self._store.compare_set(key, "", str(step))',
        'tests/utils/test_stopping.py -m "not slow"',
    ),
    Mutation(
        "utils/stopping.py", "a signal is obeyed again and again",
        "        self._obeyed.update(found)\n", "",
        'tests/utils/test_stopping.py -m "not slow"',
    ),
    Mutation(
        "utils/files.py", "the JSON is the first file that moves",
        'key=lambda file: file.suffix == ".json"', 'key=lambda file: file.suffix != ".json"',
        'tests/utils/test_files.py -m "not slow"',
    ),
    Mutation(
        "utils/files.py", "others may not read what is written",
        "            partial.chmod(mode)  # safetensors makes files that nobody else may read\n", "",
        'tests/utils/test_files.py -m "not slow"',
    ),
    Mutation(
        "rewards/serving/scoring_queue.py", "a retry is scored again",
        "            if key in self._jobs:\n                return True\n", "",
        "tests/rewards/serving/test_scoring_queue.py",
    ),
    Mutation(
        "rewards/serving/scoring_queue.py", "the pixels of a failed request stay taken",
        "                self._pixels -= request.pixels\n", "                pass\n",
        "tests/rewards/serving/test_scoring_queue.py",
    ),
    Mutation(
        "rewards/serving/scoring_queue.py", "images of other sizes are batched together",
        " and self._waiting[0].pixels.shape == size:", ":",
        "tests/rewards/serving/test_scoring_queue.py",
    ),
    Mutation(
        "rewards/serving/wire.py", "a picture's size is not compared with the others'",
        "    if len(sizes) > 1:", "    if False:",
        "tests/rewards/serving/test_wire.py",
    ),
    Mutation(
        "roles/contents.py", "an alpha of 0 is a scale",
        "number and 0 < scale < math.inf", "number and 0 <= scale < math.inf",
        "tests/roles/test_contents.py",
    ),
    Mutation(
        "roles/contents.py", "DoRA is read as plain LoRA",
        'not config.use_dora and config.bias == "none"', 'config.bias == "none"',
        "tests/roles/test_contents.py",
    ),
    Mutation(
        "utils/yaml_text.py", "the limit is ten times as high",
        "total <= MOST_VALUES", "total <= 10 * MOST_VALUES",
        "tests/utils/test_configuration.py",
    ),
    Mutation(
        "utils/yaml_text.py", "a key that stands twice is the later one",
        "        lines[name] = line\n", "",
        "tests/utils/test_configuration.py",
    ),
    Mutation(
        "studies/children.py", "what is started after the signal goes on",
        "            if self.ended:\n                process.terminate()\n", "",
        "tests/studies/test_children.py",
    ),
    Mutation(
        "utils/files.py", "the previous folder is gone before the new one is whole",
        "        yield new\n        if folder.exists():\n            os.rename(folder, previous)\n",
        "        if folder.exists():\n            os.rename(folder, previous)\n        yield new\n",
        'tests/utils/test_files.py -m "not slow"',
    ),
    Mutation(
        "modules/optimization.py", "no weight decay is AdamW's 0.01",
        "                weight_decay=settings.weight_decay,\n", "",
        "tests/modules/test_updates.py",
    ),
    Mutation(
        "modules/optimization.py", "a loss that is no number is not looked at",
        "torch.isfinite(torch.stack([loss, norm.to(loss)])).all()", "torch.isfinite(norm)",
        "tests/modules/test_updates.py",
    ),
    Mutation(
        "utils/run_folder.py", "two runs may have one folder",
        "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/modules/test_preflight.py -k another_process",
    ),
    Mutation(
        "modules/strategies.py", "replicas are not counted",
        "shards >= 1 and replicas >= 1 and shards * replicas == processes", "shards >= 1 and shards == processes",
        "tests/modules/test_preflight.py -k options_that_cannot_be",
    ),
    Mutation(
        "modules/strategies.py", "the time-out is torch's",
        "super().__init__(find_unused_parameters=True, timeout=timeout)", "super().__init__(find_unused_parameters=True)",
        "tests/modules/test_strategies.py",
    ),
    Mutation(
        "utils/transfer.py", "the host waits for the copy",
        "buffer.to(device, non_blocking=True)", "buffer.to(device)",
        "tests/utils/test_transfer.py tests/modules/test_traffic.py",
    ),
    Mutation(
        "utils/transfer.py", "the buffer is not pinned",
        "pinned = torch.accelerator.is_available()", "pinned = False",
        "tests/utils/test_transfer.py tests/modules/test_traffic.py",
    ),
    Mutation(
        "utils/run_folder.py", "half-written checkpoints stay",
        ', *folder.rglob(f"*{PARTIAL_SUFFIX}")', "",
        "tests/test_resume.py -k completed_by_a_resume",
    ),
    Mutation(
        "callbacks/reward_eval.py", "a resumed run that is complete evaluates again",
        "and not trainer.strategy.broadcast(written)", "",
        "tests/test_resume.py -k completed_by_a_resume",
    ),
    Mutation(
        "utils/stopping.py", "the handlers that were there do not come back",
        "            signal.signal(one, handler)\n        signal.set_wakeup_fd", "            pass\n        signal.set_wakeup_fd",
        "tests/utils/test_stopping.py",
    ),
    Mutation(
        "callbacks/interruption.py", "the status is 1",
        "raise SystemExit(128 + ending[0])", "raise SystemExit(1)",
        "tests/callbacks/test_interruption.py::test_it_ends_after_the_update_and_goes_on_bit_for_bit",
    ),
    Mutation(
        "callbacks/interruption.py", "nothing is saved",
        "        trainer.save_checkpoint(last)\n", "",
        "tests/callbacks/test_interruption.py::test_it_ends_after_the_update_and_goes_on_bit_for_bit",
    ),
    Mutation(
        "modules/optimization.py", "gradients are synchronised with every loss",
        "nullcontext() if number == len(losses) else", "nullcontext() if True else",
        "tests/distributed/test_rtdmd_two_processes.py",
    ),
    Mutation(
        "models/broadcast.py", "buffers are not sent",
        "    yield from module.buffers()\n", "",
        "tests/distributed/test_loading.py",
    ),
    Mutation(
        "models/broadcast.py", "every process reads",
        "torch.distributed.get_rank() == READER", "True",
        "tests/distributed/test_loading.py",
    ),
    Mutation(
        "roles/compiling.py", "a graph break, or a graph too many, is no error",
        "fullgraph=True", "fullgraph=False",
        "tests/roles/test_compiling.py",
    ),
    Mutation(
        "roles/compiling.py", "the first block alone is compiled",
        "dynamic=False, backend=backend)", "dynamic=False, backend=backend)\n            return",
        "tests/roles/test_compiling.py",
    ),
    Mutation(
        "losses/matching.py", "the pull uses the fake score's noise of the way up on the way back",
        'noise = random.normal(f"{purpose} return", start.shape[1:])',
        "noise = interval.noise",
        "tests/modules/test_matching_losses.py tests/modules/test_ac_dmd.py -m 'not slow'",
    ),
    Mutation(
        "losses/matching.py", "the consistency branches share a noise",
        'f"{purpose} move {move} branch {branch}", shape) for',
        'f"{purpose} move {move} branch 0", shape) for',
        "tests/modules/test_consistency_regulariser.py",
    ),
    Mutation(
        "losses/matching.py", "the consistency branch has a gradient into its start",
        "torch.cat([velocity.detach()] * branches)",
        "torch.cat([velocity] * branches)",
        "tests/modules/test_consistency_regulariser.py",
    ),
    Mutation(
        "losses/policy.py", "the KL term counts samples without an advantage",
        "Term((kl * (advantages != 0)).mean()",
        "Term(kl.mean()",
        "tests/modules/test_reinforcement_losses.py",
    ),
    Mutation(
        "losses/policy.py", "the old log-probability is the last call's",
        "rollout.update_log_probs.setdefault(number, log_prob.detach())",
        "log_prob.detach()",
        "tests/modules/test_first_ratio.py tests/modules/test_reinforcement_losses.py",
    ),
    Mutation(
        "losses/reward_backprop.py", "the weights of the rewards are left out",
        "torch.stack([self.rewards.weights[name] * values for",
        "torch.stack([values for",
        "tests/modules/test_reinforcement_losses.py tests/modules/test_golden_rtdmd.py",
    ),
    Mutation(
        "modules/explorer.py", "trained steps share their noise in a group",
        "if number in chosen or not self.settings.shared_noise:",
        "if not self.settings.shared_noise:",
        "tests/modules/test_reinforcement_rollouts.py",
    ),
    Mutation(
        "modules/cycle.py", "a rollout never stops early",
        "Update(_draw(batches, generator), _draw(stops, generator) + 1)",
        "Update(_draw(batches, generator), stops)",
        "tests/modules/test_cycle.py",
    ),
    Mutation(
        "data/rollout.py", "a group is told by the order in the batch",
        "str(index // images_per_prompt) for index in everyones",
        "str(place // images_per_prompt) for place in range(len(everyones))",
        "tests/data/test_rollout.py",
    ),
    Mutation(
        "data/rollout.py", "the shared noise is the same in every epoch",
        'keyed_generator(seed, epoch, f"shared',
        'keyed_generator(seed, 0, f"shared',
        "tests/data/test_rollout.py",
    ),
    Mutation(
        "utils/randomness.py", "a sample's second use draws the first one's numbers",
        'f"{self.use}{purpose}") for index',
        "purpose) for index",
        "tests/utils/test_randomness.py",
    ),
    Mutation(
        "modules/notes.py", "each process counts as much as the others",
        "total = of_counts.sum(dim=0)",
        "total = of_counts[0] * len(of_counts)",
        "tests/modules/test_notes.py",
    ),
    Mutation(
        "rewards/mixture.py", "a gradient that is lost is not told",
        "if images.requires_grad and not score.requires_grad:",
        "if False:",
        "tests/rewards/test_mixture.py",
    ),
    Mutation(
        "rewards/mixture.py", "the images may be changed in place",
        "if version is not None and images._version != version:",
        "if False:",
        "tests/rewards/test_mixture.py tests/rewards/test_own_rewards.py",
    ),
    Mutation(
        "models/frozen_linear.py", "the bias is forgotten",
        "_unpack_for(x, packed, scale, kind, shape), bias)",
        "_unpack_for(x, packed, scale, kind, shape))",
        "tests/models/test_quantization.py -m 'not slow'",
    ),
    Mutation(
        "utils/offloading.py", "a weight that two modules share becomes two",
        "if id(tensor) not in made:",
        "if True:",
        "tests/modules/test_offload.py -m 'not slow'",
    ),
    Mutation(
        "utils/offloading.py", "the inner of two nested uses sends the weights home",
        "if not self._uses:",
        "if True:",
        "tests/modules/test_offload.py -m 'not slow'",
    ),
    Mutation(
        "roles/apply.py", "the merged weight is rounded twice",
        "weight.copy_(weight.float() + update.delta().to(weight.device))",
        "weight.copy_(weight + update.delta().to(weight.device, weight.dtype))",
        "tests/roles/test_contents.py",
    ),
    Mutation(
        "evaluation/statistics.py", "the images of a prompt count as samples",
        "return np.reshape(scores, (-1, prompts)).mean(axis=0).tolist()",
        "return list(scores)",
        "tests/evaluation/test_statistics.py tests/evaluation/test_tables.py",
    ),
    Mutation(
        "callbacks/alarm.py", "an equal score leaves the peak where it is",
        "score >= peak.score",
        "score > peak.score",
        "tests/callbacks/test_alarm.py",
    ),
    Mutation(
        "callbacks/diversity.py", "the difference is not the root mean square",
        "/ math.sqrt(flat.shape[-1])",
        "/ flat.shape[-1]",
        "tests/callbacks/test_diversity.py",
    ),
    Mutation(
        "planning/estimate.py", "the next block on its way is not counted",
        "+ 2 * base.largest_block",
        "+ base.largest_block",
        "tests/planning/test_estimate.py",
    ),
    Mutation(
        "data/embedding_store.py", "an embedding of another shape is let through",
        "        if form != self._known:\n",
        "        if False:\n",
        "tests/data/test_embeddings_cache.py -m 'not slow'",
    ),
    Mutation(
        "modules/origin.py", "another base is let through",
        "for name in wanted | found:",
        'for name in wanted.keys() & {"module", "LoRA"}:',
        "tests/modules/test_preflight.py -k checkpoints_of_other_runs",
    ),
]
# fmt: on

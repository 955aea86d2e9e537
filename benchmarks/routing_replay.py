"""What routing replay costs a rollout's training: the old-log-prob pass and its updates, without generation.

    python benchmarks/routing_replay.py recipes/v3_base

Trains on the same random samples without replay, with R2, and with R3 (routes as an engine would give them), in turn,
on one thread. Prints the least CPU time of each, which other programs disturb least, and how much more it is than
without.
"""

import argparse
import time

import numpy as np
import torch
from accelerate import Accelerator

from grpo.learner.batch import Sample, attach
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.model.replay import RoutingReplay
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.config import ModelConfig
from grpo.recipe.optimizer import OptimizerConfig

MODES = ("none", "R2", "R3")
UPDATES = 2  # per rollout, as R2 needs


def make_samples(count: int, prompt: int, completion: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(
            problem_id=str(i),
            prompt_ids=rng.integers(3, 60, prompt).tolist(),
            completion_ids=rng.integers(3, 60, completion).tolist(),
            mini_batch=i % UPDATES,
            sampling_logprobs=-3.0,
            advantages=float(rng.choice([-1.0, 1.0])),
            token_weights=1 / (count * completion),
        )
        for i in range(count)
    ]


def rollout_seconds(policy: Policy, samples: list[Sample], mode: str) -> float:
    """CPU seconds of the old-log-prob pass and the updates of one rollout."""
    policy.replay, replay = None if mode == "none" else policy.replay, policy.replay
    loss = loss_function(AlgorithmConfig())
    started = time.process_time()
    policy.check_routes(samples)
    if mode == "R2":
        logprobs, routes = policy.logprobs_and_routes(samples)
        samples = attach(samples, old_logprobs=logprobs, routes=routes)
    else:
        samples = attach(samples, old_logprobs=policy.logprobs(samples))
    for index in range(UPDATES):
        policy.update([sample for sample in samples if sample.mini_batch == index], loss)
    seconds = time.process_time() - started
    policy.replay = replay
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=24)
    parser.add_argument("--completion", type=int, default=104)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(ModelConfig(model_name_or_path=options.folder))
    policy = Policy(
        model,
        OptimizerConfig(learning_rate=1e-9),  # so that all rollouts have the same routes
        Accelerator(cpu=True),
        max_steps=10_000,
        temperature=1.0,
        batching=Batching(8192, pad_token_id=0),
        replay=RoutingReplay(model),
    )
    samples = make_samples(options.samples, options.prompt, options.completion)
    with_routes = attach(samples, routes=policy.logprobs_and_routes(samples)[1])
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in range(options.repeats + 1):
        for mode in MODES:
            seconds = rollout_seconds(policy, with_routes if mode == "R3" else samples, mode)
            if repeat:  # the first warms up
                times[mode].append(seconds)
    least = {mode: min(times[mode]) for mode in MODES}
    for mode in MODES:
        print(f"{mode:4}  {least[mode]:.3f} s  {least[mode] / least['none'] - 1:+.1%}")


if __name__ == "__main__":
    main()

"""What routing replay costs a rollout's training: the old-log-prob pass and its updates, without generation.

    python benchmarks/routing_replay.py recipes/v3_base [--groups 4] [--repeats 15]

Groups of 16 samples that share a prompt, with r1_zero's lengths; the same samples without replay, with R2, and with R3
(routes as an engine would give them), on one thread. Made for a machine that others use too: CPU time of this process,
every mode in every round, in another order each time, and ratios within a round. `none` runs twice a round: how far
its second run is from its first is what the measurement itself is worth. Not in it are the time that an engine takes to
record routes for R3, and generation, which makes replay's share of a step smaller.
"""

import argparse
import time
from collections.abc import Iterable
from itertools import permutations
from random import Random

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

MODES = ("none", "none again", "R2", "R3")
UPDATES = 2  # per rollout, as R2 needs
SIZE = 16


def make_samples(groups: int, prompt: int, mean: int, longest: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    found = []
    for group in range(groups):
        prompt_ids = rng.integers(3, 60, prompt).tolist()
        for length in np.clip(rng.lognormal(np.log(mean) - 0.1, 0.45, SIZE), 4, longest).astype(int):
            found.append(
                Sample(
                    problem_id=str(group),
                    prompt_ids=prompt_ids,
                    completion_ids=rng.integers(3, 60, length).tolist(),
                    mini_batch=len(found) % UPDATES,
                    sampling_logprobs=-3.0,
                    advantages=float(rng.choice([-1.0, 1.0])),
                    token_weights=1 / (groups * SIZE * mean),
                )
            )
    return found


def rollout_seconds(policy: Policy, samples: list[Sample], mode: str) -> float:
    """CPU seconds of the old-log-prob pass and the updates of one rollout."""
    policy.replay, replay = None if mode.startswith("none") else policy.replay, policy.replay
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


def interval(ratios: Iterable[float]) -> tuple[float, float, float]:
    """Median, and 95% of the medians of resampled rounds."""
    values = np.array(list(ratios))
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=12)
    parser.add_argument("--mean", type=int, default=50, help="tokens of a completion")
    parser.add_argument("--longest", type=int, default=144)
    parser.add_argument("--repeats", type=int, default=15)
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
    samples = make_samples(options.groups, options.prompt, options.mean, options.longest)
    with_routes = attach(samples, routes=policy.logprobs_and_routes(samples)[1])
    orders = list(permutations(MODES))
    Random(0).shuffle(orders)
    rounds: list[dict[str, float]] = []
    for repeat in range(options.repeats + 1):
        order = orders[repeat % len(orders)]
        rounds.append({mode: rollout_seconds(policy, with_routes if mode == "R3" else samples, mode) for mode in order})
    rounds = rounds[1:]  # the first warms up
    size = sum(len(with_routes[0].routes[0].tobytes()) * (s.length - 1) for s in samples)  # type: ignore[index]
    print(
        f"{len(samples)} samples, {sum(s.length for s in samples):,} tokens, {size / 2**10:,.0f} KiB of routes; "
        f"without replay {np.median([one['none'] for one in rounds]):.3f} s of CPU time; {len(rounds)} rounds"
    )
    for mode in MODES[1:]:
        middle, low, high = interval(one[mode] / one["none"] - 1 for one in rounds)
        print(f"{mode:10}  {middle:+.1%} (95%: {low:+.1%} to {high:+.1%})")


if __name__ == "__main__":
    main()

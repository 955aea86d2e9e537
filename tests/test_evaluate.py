"""Estimators against brute force, the interval against simulation, and evaluation of known completions."""

import itertools
import multiprocessing
import os
import random
import socket
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo.evaluate import Evaluation, clustered_interval, consensus, evaluate, pass_at_k
from rewards.score import Rewards, RewardSpec
from rollout.problems import held_out, load_source
from rollout.prompts import Prompter
from rollout.types import Completion, Group, Problem, Prompt, Sampling

# Three problems and what is said to each: (completion, tokens, finish reason).
SAID = {
    "1+1=?": [("<answer>2</answer>", 4, "stop"), ("<answer>3</answer>", 6, "stop"),
              ("<answer>2</answer>", 4, "stop"), ("<answer>3</answer>", 6, "stop")],
    "2+2=?": [("<answer>4</answer>", 4, "stop"), ("<answer>4</answer>", 4, "stop"),
              ("<answer>4", 10, "length"), ("<answer>5</answer>", 2, "stop")],
    "3+3=?": [("", 0, "stop"), ("<answer>7</answer>", 4, "stop"),
              ("<answer>7</answer>", 4, "stop"), ("<answer>6</answer>", 2, "stop")],
}  # fmt: skip
PROMPTS = [
    Prompt(problem=Problem(id=f"p/{i}", prompt=text, columns={"answer": answer}), token_ids=[1])
    for i, (text, answer) in enumerate(zip(SAID, ["2", "4", "6"], strict=True))
]
SAMPLING = Sampling(num_generations=4, max_completion_length=10)


class Recital:
    """An engine that says what SAID holds, last problem first: engines yield in no particular order."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        for prompt in reversed(prompts):
            completions = [
                Completion(token_ids=[5] * n, logprobs=[0.0] * n, text=text, finish_reason=reason, policy_version=0)
                for text, n, reason in SAID[prompt.problem.prompt]
            ]
            yield Group(problem=prompt.problem, prompt_ids=prompt.token_ids, completions=completions)


def rewards_of(*functions) -> Rewards:
    return Rewards([RewardSpec(function=function) for function in functions], num_workers=0)


def recite(*, reward: str = "exact_match", rewards: Rewards | None = None, **processes) -> Evaluation:
    rewards = rewards or rewards_of("exact_match", "format")
    return evaluate(Recital(), PROMPTS, SAMPLING, rewards, reward=reward, **processes)


# -- estimators


def test_pass_at_k_is_the_share_of_all_choices_that_hold_a_correct_one():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            samples = [1] * c + [0] * (n - c)
            chosen = list(itertools.combinations(samples, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_pass_at_k_of_many_samples_neither_overflows_nor_rounds_to_one():
    assert pass_at_k(1024, 1, 512) == 0.5
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)


def test_consensus_is_the_expectation_over_the_orders_in_which_ties_are_broken():
    for answers in itertools.product(["2", "3", "5", None], repeat=5):
        votes = Counter(answer for answer in answers if answer is not None)
        # max keeps the first of those that are tied
        wins = [max(order, key=votes.__getitem__) == "2" for order in itertools.permutations(votes) if order]
        expected = statistics.fmean(wins) if wins else 0.0
        assert consensus(answers, [answer == "2" for answer in answers]) == pytest.approx(expected)


def test_interval_covers_the_truth_in_93_to_97_of_100_evaluations():
    """Problems with success rates of their own, four samples each; taken for independent they would cover 79 of 100."""
    rng = random.Random(0)
    for a, b in ((0.1, 0.9), (0.5, 0.5), (1.2, 0.3)):
        covered = 0
        for _ in range(1500):
            rates = [rng.betavariate(a, b) for _ in range(80)]
            low, high = clustered_interval([sum(rng.random() < rate for _ in range(4)) / 4 for rate in rates])
            covered += low <= a / (a + b) <= high
        assert 0.93 <= covered / 1500 <= 0.97


def test_interval_widens_with_clustering_and_stays_within_0_and_1():
    def width(shares):
        low, high = clustered_interval(shares)
        assert 0 <= low <= statistics.fmean(shares) <= high <= 1
        return high - low

    assert width([0.0, 1.0] * 50) > 1.5 * width([0.25, 0.75] * 50)
    assert clustered_interval([1.0] * 100) == pytest.approx((0.963, 1.0), abs=1e-3)
    assert clustered_interval([0.0] * 100) == pytest.approx((0.0, 0.037), abs=1e-3)
    assert width([0.5]) > 0.8


# -- the evaluation


def test_metrics_of_known_completions():
    assert recite().metrics == pytest.approx(
        {
            "eval/pass@1": (2 / 4 + 2 / 4 + 1 / 4) / 3,
            "eval/pass@2": (5 / 6 + 5 / 6 + 3 / 6) / 3,
            "eval/pass@4": 1.0,
            # Wilson for (5/12) (7/12) / (1/144) = 35 samples
            "eval/pass@1_low": 0.2696,
            "eval/pass@1_high": 0.5802,
            "eval/cons@4": (1 / 2 + 1 + 0) / 3,
            "eval/mean_length": 50 / 12,
            "eval/truncated_ratio": 1 / 12,
            "eval/no_answer_ratio": 2 / 12,
            "eval/unscored_ratio": 0.0,
            "eval/num_problems": 3,
            "eval/rewards/exact_match/mean": 5 / 12,
            "eval/rewards/format/mean": 0.0,
        },
        abs=1e-4,
    )


def test_records_keep_every_completion_in_the_order_of_the_prompts():
    records = recite().records
    assert [record["problem_id"] for record in records] == ["p/0", "p/1", "p/2"]
    assert records[1]["prompt"] == "2+2=?" and records[1]["columns"] == {"answer": "4"}
    assert records[1]["completions"][2] == {
        "text": "<answer>4",
        "num_tokens": 10,
        "finish_reason": "length",
        "answer": None,
        "correct": False,
        "rewards": {"exact_match": 0.0, "format": 0.0},
    }


def test_reward_that_does_not_apply_counts_as_wrong_and_is_reported():
    def only_odd(prompts, completions, answer, **kwargs):
        return [None if gold == "4" else 1.0 for gold in answer]

    evaluation = recite(rewards=rewards_of(only_odd), reward="only_odd")
    assert evaluation.metrics["eval/pass@1"] == pytest.approx(2 / 3)
    assert evaluation.metrics["eval/unscored_ratio"] == pytest.approx(1 / 3)
    assert evaluation.metrics["eval/rewards/only_odd/mean"] == 1.0


def test_unknown_reward_is_an_error_before_anything_is_generated():
    with pytest.raises(ValueError, match=r"evaluation.reward='acuracy' is not among the rewards: exact_match, format"):
        evaluate(None, PROMPTS, SAMPLING, rewards_of("exact_match", "format"), reward="acuracy")  # pyright: ignore


def test_one_sample_has_no_consensus():
    sampling = Sampling(num_generations=1, max_completion_length=10)
    first = {text: said[:1] for text, said in SAID.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SAID", first)
        evaluation = evaluate(Recital(), PROMPTS, sampling, rewards_of("exact_match"), reward="exact_match")
    assert [key for key in evaluation.metrics if "@" in key] == ["eval/pass@1", "eval/pass@1_low", "eval/pass@1_high"]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_shares_of_processes_add_up_to_the_same_evaluation(num_processes: int):
    """Threads stand for processes; with four, one of them has no problem at all."""
    everyone, together = threading.Barrier(num_processes), []

    def gather(records: list) -> list:
        together.extend(records)
        everyone.wait(timeout=30)
        return list(together)

    with ThreadPoolExecutor(num_processes) as pool:
        running = [
            pool.submit(recite, process_index=index, num_processes=num_processes, gather=gather)
            for index in range(num_processes)
        ]
        assert [future.result() for future in running] == [recite()] * num_processes


def _rank(index: int, port: int, results) -> None:
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    results.put((index, recite(process_index=index, num_processes=accelerator.num_processes).metrics))
    accelerator.end_training()


@pytest.mark.slow
def test_two_real_processes_report_the_same_metrics_as_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(index, port, results)) for index in range(2)]
    for rank in ranks:
        rank.start()
    metrics = dict(results.get(timeout=300) for _ in ranks)
    for rank in ranks:
        rank.join(timeout=30)
    assert metrics == {0: recite().metrics, 1: recite().metrics}


def test_a_model_is_evaluated_from_task_to_metrics_without_touching_the_random_state(tiny_v3: Path):
    import torch  # here, because the ranks above import this file, too
    from transformers import AutoTokenizer

    from rollout.hf import HFEngine

    tokenizer = AutoTokenizer.from_pretrained(tiny_v3)
    engine = HFEngine(str(tiny_v3), dtype="float32", device="cpu", max_num_seqs=32, max_model_len=48)
    source = load_source(task="countdown", split="eval")
    prompts = held_out(source, Prompter(tokenizer, template="{prompt}<think>", max_prompt_length=32), 6)
    sampling = Sampling(num_generations=2, max_completion_length=6, seed=3)

    def run() -> Evaluation:
        return evaluate(engine, prompts, sampling, rewards_of("countdown", "format"), reward="countdown")

    random.seed(1)
    torch.manual_seed(1)
    undisturbed = random.random(), torch.rand(3).tolist()
    random.seed(1)
    torch.manual_seed(1)
    evaluation = run()
    assert (random.random(), torch.rand(3).tolist()) == undisturbed
    assert run() == evaluation
    assert [record["problem_id"] for record in evaluation.records] == [f"countdown/eval/{i}" for i in range(6)]
    assert evaluation.metrics["eval/num_problems"] == 6
    assert evaluation.metrics["eval/pass@1"] == 0.0  # the model is random
    assert 0 < evaluation.metrics["eval/mean_length"] <= 6

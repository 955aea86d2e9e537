"""Evaluation during training: known completions, several processes, tasks, and a real engine."""

import multiprocessing
import os
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo.evaluation.training import Evaluation, HeldOut, reward_held_out
from rewards.runner.score import Rewards, RewardSpec
from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import held_out
from rollout.types import Completion, Group, Problem, Prompt, Sampling

# Three problems and their completions: (text, tokens, finish reason).
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
    """An engine that returns the completions in SAID, last problem first, as engines yield in no particular order."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        for prompt in reversed(prompts):
            completions = [
                Completion(token_ids=[5] * n, logprobs=[0.0] * n, text=text, finish_reason=reason, policy_version=0)
                for text, n, reason in SAID[prompt.problem.prompt]
            ]
            yield Group(problem=prompt.problem, prompt_ids=prompt.token_ids, completions=completions)


def rewards_of(*functions) -> Rewards:
    return Rewards([RewardSpec(function=function) for function in functions], num_workers=0)


def of(*functions, reward: str | None = None, prompts: Sequence[Prompt] = PROMPTS) -> HeldOut:
    return reward_held_out(prompts, rewards_of(*functions), reward, None)


def recite(held_out: HeldOut | None = None, **processes) -> Evaluation:
    return (held_out or of("exact_match", "format")).evaluate(Recital(), SAMPLING, **processes)


def test_metrics_of_known_completions():
    assert recite().metrics == pytest.approx(
        {
            "eval/pass@1": (2 / 4 + 2 / 4 + 1 / 4) / 3,
            "eval/pass@2": (5 / 6 + 5 / 6 + 3 / 6) / 3,
            "eval/pass@4": 1.0,
            # Wilson for (5/12) (7/12) / (1/144) * (1.960 / 4.303)² = 7.26 samples
            "eval/pass@1_low": 0.1541,
            "eval/pass@1_high": 0.7369,
            "eval/cons@4": (1 / 2 + 1 + 0) / 3,
            "eval/mean_length": 50 / 12,
            "eval/truncated_ratio": 1 / 12,
            "eval/no_answer_ratio": 2 / 12,
            "eval/unverifiable_ratio": 0.0,
            "eval/p95_length": 10,
            "eval/num_problems": 3,
            "eval/num_samples": 4,
            "eval/num_unreadable": 0,
            "eval/rewards/exact_match/mean": 5 / 12,
            "eval/rewards/format/mean": 0.0,
        },
        abs=1e-4,
    )


def test_rows_keep_every_completion_in_prompt_order():
    rows = recite().rows
    assert [(row["problem_id"], row["sample"]) for row in rows] == [(f"p/{i}", j) for i in range(3) for j in range(4)]
    row = rows[6]
    assert isinstance(row.pop("seed"), int)
    assert row == {
        "task": "",
        "problem_id": "p/1",
        "sample": 2,
        "prompt": "2+2=?",
        "completion_prefix": "",
        "completion": "<answer>4",
        "num_tokens": 10,
        "finish_reason": "length",
        "answer": None,
        "reference_answer": "4",
        "verdict": "wrong",
        "reason": "no answer",
        "rewards": {"exact_match": 0.0, "format": 0.0},
    }


def test_problems_without_a_reward_are_counted_and_excluded():
    def only_odd(prompts, completions, answer, **kwargs):
        return [None if value == "4" else 1.0 for value in answer]

    metrics = recite(of(only_odd)).metrics
    assert metrics["eval/pass@1"] == 1.0
    assert (metrics["eval/num_problems"], metrics["eval/num_unreadable"]) == (3, 1)
    assert metrics["eval/mean_length"] == 30 / 8
    assert metrics["eval/rewards/only_odd/mean"] == 1.0


PROGRAM = "```python\nprint(int(input()) + 1)\n```"
ECHO = "So:\n```python\nprint(input())\n```"


def test_a_program_is_the_answer_to_the_code_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SAID", {"add 1": [(text, 4, "stop") for text in (PROGRAM, ECHO, ECHO, "print(2)")]})
    tests = {"type": "stdin", "cases": [{"input": "1\n", "output": "2\n"}]}
    prompts = [Prompt(problem=Problem(id="p/0", prompt="add 1", columns={"tests": tests}), token_ids=[1])]
    found = recite(of("code", prompts=prompts))
    echo = "print(input())\n"
    assert [row["answer"] for row in found.rows] == ["print(int(input()) + 1)\n", echo, echo, None]
    assert [row["reason"] for row in found.rows] == ["", "code is 0", "code is 0", "no answer"]
    assert (found.metrics["eval/pass@1"], found.metrics["eval/no_answer_ratio"]) == (0.25, 0.25)
    assert not [key for key in found.metrics if "cons@" in key]


def test_a_reward_whose_answers_are_not_known_has_no_votes_and_no_share_without_answer() -> None:
    def mine(completions: list[str], **columns: object) -> list[float]:
        return [float("2" in text) for text in completions]

    found = recite(of(mine))
    assert {row["answer"] for row in found.rows} == {None}
    assert found.rows[1]["reason"] == "mine is 0"
    assert found.metrics["eval/pass@1"] == pytest.approx(1 / 6)
    assert not [key for key in found.metrics if "cons@" in key or "no_answer" in key]


def test_a_reward_finds_no_answer_where_it_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SAID", {text: [(r"\boxed{2}", 4, "stop")] for text in SAID})
    assert recite(of("exact_match")).metrics["eval/no_answer_ratio"] == 1.0
    tagged = [RewardSpec(function="accuracy", options={"answer_in": "free_text"})]
    prompts = [
        Prompt(problem=Problem(id=p.problem.id, prompt=p.problem.prompt, columns={"solution": "2"}), token_ids=[1])
        for p in PROMPTS
    ]
    monkeypatch.setitem(globals(), "SAID", {text: [("It is 2.", 4, "stop")] for text in SAID})
    free = reward_held_out(prompts, Rewards(tagged, num_workers=0), None, None)
    assert recite(free).metrics["eval/no_answer_ratio"] == 0.0
    assert {row["answer"] for row in recite(free).rows} == {"2"}


def test_unknown_reward_is_an_error():
    with pytest.raises(
        ValueError, match=r"evaluation.reward='acuracy' is not one of the run's rewards: exact_match, format"
    ):
        of("exact_match", "format", reward="acuracy")


def test_one_sample_has_no_consensus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "SAID", {text: said[:1] for text, said in SAID.items()})
    sampling = Sampling(num_generations=1, max_completion_length=10)
    metrics = of("exact_match").evaluate(Recital(), sampling).metrics
    assert [key for key in metrics if "@" in key] == ["eval/pass@1", "eval/pass@1_low", "eval/pass@1_high"]


def test_task_metrics_are_prefixed_with_its_name():
    named = HeldOut("sums", PROMPTS, of("exact_match").grader)
    assert recite(named).metrics["eval/sums/pass@4"] == 1.0


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_together_give_the_same_evaluation(num_processes: int):
    """Threads stand in for processes; with four, one of them has no problem."""
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


def test_held_out_evaluation_leaves_the_random_state_untouched(tiny_v3: Path):
    import torch  # here, because the ranks above import this file as well
    from transformers import AutoTokenizer

    from rollout.engines.hf import HFEngine

    tokenizer = AutoTokenizer.from_pretrained(tiny_v3)
    engine = HFEngine(str(tiny_v3), dtype="float32", device="cpu", max_num_seqs=32, max_model_len=48)
    source = load_source(task="countdown", split="eval")
    prompts, _ = held_out(source, Prompter(tokenizer, template="{prompt}<think>", max_prompt_length=32), 6)
    sampling = Sampling(num_generations=2, max_completion_length=6, seed=3)

    def run() -> Evaluation:
        return of("countdown", "format", reward="countdown", prompts=prompts).evaluate(engine, sampling)

    random.seed(1)
    torch.manual_seed(1)
    undisturbed = random.random(), torch.rand(3).tolist()
    random.seed(1)
    torch.manual_seed(1)
    evaluation = run()
    assert (random.random(), torch.rand(3).tolist()) == undisturbed
    assert run() == evaluation
    assert [row["problem_id"] for row in evaluation.rows[::2]] == [f"countdown/eval/{i}" for i in range(6)]
    assert evaluation.metrics["eval/num_problems"] == 6
    assert evaluation.metrics["eval/pass@1"] == 0.0  # the model is random
    assert 0 < evaluation.metrics["eval/mean_length"] <= 6


def test_a_source_whose_reward_is_no_share_has_its_mean_and_no_accuracy() -> None:
    def helpful(completions: list[str], **columns: object) -> list[float]:
        return [len(text) / 10 for text in completions]

    def tidy(completions: list[str], **columns: object) -> list[float]:
        return [1.0] * len(completions)

    specs = [
        RewardSpec(function="exact_match", data_sources=["maths"]),
        RewardSpec(function=tidy, weight=0.1),
        RewardSpec(function=helpful, data_sources=["general"]),
    ]
    rewards = Rewards(specs, num_workers=0)
    found = {}
    for name in ("maths", "general"):
        prompts = [
            Prompt(
                problem=Problem(
                    id=p.problem.id, prompt=p.problem.prompt, columns={**p.problem.columns, "data_source": name}
                ),
                token_ids=[1],
            )
            for p in PROMPTS
        ]
        found |= recite(reward_held_out(prompts, rewards, "exact_match", name=name)).metrics
    assert found["eval/maths/pass@1"] == pytest.approx(5 / 12)
    assert found["eval/maths/rewards/tidy/mean"] == 1.0
    assert "eval/maths/rewards/helpful/mean" not in found
    assert found["eval/general/rewards/helpful/mean"] == pytest.approx(189 / 120)  # characters in SAID
    assert found["eval/general/mean_length"] == found["eval/maths/mean_length"]
    assert not [key for key in found if key.startswith("eval/general/") and ("pass@" in key or "cons@" in key)]

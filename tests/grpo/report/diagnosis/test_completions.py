"""Truncation, length, repetition, held-out accuracy and the data: each is made on purpose."""

from pathlib import Path

from grpo.report.diagnosis.watch import Watch
from tests.grpo.report.diagnosis.made import HEALTHY, made, only, shown

LENGTH, CLIPPED = "completions/mean_length", "completions/clipped_ratio"


def test_everything_truncated(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, [{}] + [{CLIPPED: 1.0}] * 11))) == (
        "alarm",
        "Every completion has been truncated for 10 rollouts: none ends on its own, so few contain a final answer.",
        "completions/clipped_ratio 1; rule: 1 for 10 rollouts in a row",
        "steps 2–12",
        "rollout.max_completion_length=1024",
    )


def test_most_truncated_is_a_note(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, [{CLIPPED: 0.625}] * 10)))[:3] == (
        "note",
        "62% of the completions are truncated: their answers are missing, and they count as wrong.",
        "completions/clipped_ratio 0.625; rule: mean of 10 rollouts at least 0.5",
    )


def test_empty_completions(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, [{"completions/empty_ratio": 0.75}] * 5)))[:4] == (
        "alarm",
        "75% of the completions are empty: the model ends its turn at once.",
        "completions/empty_ratio 0.75; rule: mean of 5 rollouts at least 0.5",
        "steps 1–5",
    )


def test_length_collapse(tmp_path: Path) -> None:
    rows = [{}] * 5 + [{LENGTH: length} for length in (21.0, 19.0)]
    assert shown(only(made(tmp_path, rows)))[:4] == (
        "alarm",
        "Completion length has collapsed from 100 to 19 tokens: the policy may have found a short text that is "
        "rewarded without reasoning.",
        "completions/mean_length 19; rule: below 20% of the mean of its first 5 values",
        "step 7",
    )


def test_longer_without_better(tmp_path: Path) -> None:
    rows = [{}] * 5 + [{LENGTH: 160.0, "reward": 0.75}] * 5  # more reward, but from a part that is no rule
    finding = only(made(tmp_path, rows))
    assert shown(finding) == (
        "alarm",
        "Completions grew from 100 to 160 tokens and no reward rose with them: length itself may be what is learnt.",
        "completions/mean_length 160; rule: mean of 5 rollouts above 1.5 times that of the first 5, and no rule's "
        "reward or held-out pass@1 up by 0.02",
        "steps 6–10",
        "algorithm.loss_type=dr_grpo",
    )


def test_longer_and_better_is_reasoning(tmp_path: Path) -> None:
    better = [{}] * 5 + [{LENGTH: 160.0, "rewards/accuracy/mean": 0.75}] * 5
    assert made(tmp_path, better).findings == []
    held_out = [{"eval/pass@1": 0.25}, *[{}] * 5, *[{LENGTH: 160.0}] * 4, {"eval/pass@1": 0.5}, {LENGTH: 160.0}]
    assert made(tmp_path, held_out).findings == []


def test_repeated_completions(tmp_path: Path) -> None:
    rows = [{"completions/repeated_ratio": 0.96875}] * 10
    assert shown(only(made(tmp_path, rows, rollout={"temperature": 0.2}))) == (
        "alarm",
        "96.9% of the completions repeat another one of their group word for word: there is nothing to compare.",
        "completions/repeated_ratio 0.969; rule: mean of 10 rollouts at least 0.95",
        "steps 1–10",
        "rollout.temperature=1",
    )


def evaluation(accuracy: float) -> dict[str, float]:
    return {"eval/pass@1": accuracy, "eval/rewards/accuracy/mean": accuracy}


def test_learnt_by_heart(tmp_path: Path) -> None:
    known = {"rewards/accuracy/mean": 0.9}
    rows = [evaluation(0.5), *[{}] * 5, evaluation(0.6), *[known] * 5, evaluation(0.55)]
    finding = only(made(tmp_path, rows))
    assert shown(finding) == (
        "alarm",
        "The reward 'accuracy' is 0.9 on training problems and 0.55 on held-out ones; the gap grew from 0 to 0.35: the "
        "policy learns these problems by heart.",
        "rewards/accuracy/mean minus eval/rewards/accuracy/mean 0.35; rule: above 0.15, and 0.1 above that at the "
        "first evaluation",
        "steps 6–10",
        "trainer.max_steps=5",
    )
    assert finding.remedy.endswith("held-out it was best at step 5, with 0.6.")


def test_harder_held_out_problems_are_no_gap(tmp_path: Path) -> None:
    known = {"rewards/accuracy/mean": 0.9}
    rows = [evaluation(0.25), *[{}] * 5, *[known] * 5, evaluation(0.6)]  # harder from the start
    assert made(tmp_path, rows).findings == []


def test_dropped_prompts(tmp_path: Path) -> None:
    rows = [{"data/dropped_prompts": 8 * i} for i in (1, 2)]  # of 32 + 8 a step
    assert shown(only(made(tmp_path, rows))) == (
        "note",
        "20% of the problems were dropped (16 so far), most likely because their prompts are longer than "
        "data.max_prompt_length: the run trains on the short ones.",
        "data/dropped_prompts 16; rule: above 10% of the problems read",
        "steps 1–2",
        "data.max_prompt_length=1024",
    )
    assert only(made(tmp_path, [{"data/dropped_prompts": 33}])).level == "alarm"


def test_dropped_prompts_are_a_share_of_all_that_were_read(tmp_path: Path) -> None:
    """Dynamic sampling reads four times as many as it trains on."""
    rows = [{"data/dropped_prompts": 8 * i, "dynamic_sampling/sampled_groups": 128} for i in (1, 2)]
    assert made(tmp_path, rows).findings == []


def test_problems_that_change_and_rewards_that_do_not_teach_are_no_alarm(tmp_path: Path) -> None:
    rows = [{}] * 5 + [{LENGTH: 160.0}] * 5
    curriculum = {"dataset_name": "p.jsonl", "task": None, "curriculum": {"high": 0.9}}
    assert made(tmp_path / "curriculum", rows, data=curriculum).findings == []
    distilled = {"stage": "opd", "rewards": [{"name": "accuracy", "function": "accuracy"}]}
    wrong = {"rewards/accuracy/mean": 0.0, "rewards/accuracy/std": 0.0}
    assert Watch.of([{"step": i, **HEALTHY, **row, **wrong} for i, row in enumerate(rows)], distilled).findings() == []


def test_few_distinct_problems(tmp_path: Path) -> None:
    assert shown(only(made(tmp_path, [{"data/epochs": 9.5}, {"data/epochs": 10.5}])))[:4] == (
        "note",
        "Each problem has been used 10.5 times: there are few distinct ones, and the policy can learn their answers by "
        "heart.",
        "data/epochs 10.5; rule: above 10",
        "step 2",
    )

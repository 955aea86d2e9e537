"""Pairs: swapped comparisons, margin, balance of lengths, resuming, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from grpo.recipe.config import ModelConfig
from grpo.recipe.data import DataConfig
from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.preference import (
    CandidateConfig,
    JudgeEndpoint,
    PairsConfig,
    PairsRecipe,
)
from grpo.stages.preference.judging import Comparison, check_judge, load_judge, mean_scores
from grpo.stages.preference.pairs import balanced, compared, run_pairs
from grpo.stages.run import run
from rollout.types import Completion, Group, Problem
from tests.rewards.models.test_judge import serve  # noqa: F401

COURTESY = str(Path(__file__).parents[4] / "recipes/courtesy.py")
PROBLEM = Problem(id="r/1", prompt="thank Ann for 7", columns={"act": "thank", "name": "Ann", "number": 7})
SHORT, RUDE = "<answer>many thanks for 7</answer>", "<answer>hey Ann, many thanks for 7 now</answer>"
COIN = "from zlib import crc32; return 1.0 if crc32(first.encode()) > crc32(second.encode()) else -1.0"
KIND = "<answer>dear Ann, many thanks for 7</answer>"


def judge_file(folder: Path, body: str, parameters: str = "prompt, first, second, **columns") -> str:
    path = folder / "judge.py"
    path.write_text(f"def judge({parameters}):\n    {body}\n")
    return f"{path}:judge"


def group(*texts: str, reason: Any = "stop") -> Group:
    completions = [
        Completion(token_ids=[1], logprobs=[0.0], text=text, finish_reason=reason, policy_version=0) for text in texts
    ]
    return Group(problem=PROBLEM, prompt_ids=[1], completions=completions)


def pair(longer: int) -> dict[str, Any]:
    return {"longer": longer}


def test_swapping_the_order_cancels_the_position_bias() -> None:
    judge = load_judge(f"{COURTESY}:prefer")
    assert judge(PROBLEM, SHORT, SHORT, 0) == 0.15  # the bias alone
    pairs = [Comparison(PROBLEM, KIND, RUDE), Comparison(PROBLEM, RUDE, SHORT), Comparison(PROBLEM, SHORT, SHORT)]
    assert mean_scores(judge, pairs, 2, 1) == pytest.approx([0.8, -0.4, 0.0])


def test_only_pairs_above_the_margin_are_kept_and_the_rest_is_counted() -> None:
    settings = PairsConfig(num_problems=1, num_comparisons=2, margin=0.5, pairs_per_problem=3)
    groups = [group(KIND, SHORT, RUDE, KIND), group(SHORT, SHORT), group(KIND, RUDE, reason="length")]
    pairs, counts = compared(groups, load_judge(f"{COURTESY}:prefer"), settings, 1, 42)
    assert [(p["chosen"], p["rejected"], p["judge_mean"]) for p in pairs] == [(KIND, RUDE, pytest.approx(0.8))]
    assert pairs[0]["longer"] == len(KIND) - len(RUDE) == -3
    assert counts == {
        "problems": 3,
        "candidates": 8,
        "truncated": 2,
        "too_few_different": 2,
        "compared": 3,
        "within_margin": 2,  # kind - short and short - rude, 0.4 each
    }


def test_summary_only_compares_what_follows_the_thought() -> None:
    settings = PairsConfig(num_problems=1, num_comparisons=2, margin=0.1, summary_only=True)
    said = [f"<think>{'x' * 50}</think> {RUDE}", f"<think>y</think> {KIND}", "<think>never closed"]
    [found], _ = compared([group(*said)], load_judge(f"{COURTESY}:prefer"), settings, 1, 42)
    assert (found["chosen"], found["rejected"], found["longer"]) == (said[1], said[0], -3)


def test_an_answer_that_the_prompt_begins_is_in_the_answers_alone(tmp_path: Path) -> None:
    """The judge sees it once, and so does the reward model."""
    asked, begun = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "The answer"}
    problem = Problem(id="sums/1", prompt=[asked, begun], columns={})
    said = group(" is 4", "?").completions
    body = f"assert prompt == {[asked]!r}; return 1.0 if first == 'The answer is 4' else -1.0"
    settings = PairsConfig(num_problems=1, num_comparisons=2)
    prefilled = Group(problem=problem, prompt_ids=[1], completions=said, completion_prefix="The answer")
    [found], _ = compared([prefilled], load_judge(judge_file(tmp_path, body)), settings, 1, 42)
    assert (found["prompt"], found["chosen"], found["rejected"]) == (
        [asked],
        [{"role": "assistant", "content": "The answer is 4"}],
        [{"role": "assistant", "content": "The answer?"}],
    )


def test_lengths_are_balanced_by_dropping_the_surplus() -> None:
    kept = balanced([pair(n) for n in (5, 3, -2, 0, 9, 4, -1, 0)], seed=0)
    lengths = [one["longer"] for one in kept]
    assert sum(n > 0 for n in lengths) == 2 and sorted(n for n in lengths if n <= 0) == [-2, -1, 0, 0]
    assert kept == balanced([pair(n) for n in (5, 3, -2, 0, 9, 4, -1, 0)], seed=0)


@pytest.mark.parametrize(("sign", "kind"), [(1, "longer"), (-1, "shorter")])
def test_pairs_all_of_one_length_are_refused(sign: int, kind: str) -> None:
    with pytest.raises(ValueError, match=f"in all 2 pairs of different lengths the chosen answer is the {kind} one"):
        balanced([pair(sign), pair(2 * sign), pair(0)], seed=0)


@pytest.mark.parametrize("returned", ["2", "-1.5", "float('nan')", "None", "'A'"])
def test_a_judge_out_of_range_is_refused(tmp_path: Path, returned: str) -> None:
    judge = load_judge(judge_file(tmp_path, f"return {returned}"))
    with pytest.raises(ValueError, match="a score lies between -1 and 1"):
        judge(PROBLEM, KIND, RUDE, 0)


def test_a_judge_without_its_columns_is_refused(tmp_path: Path) -> None:
    judge = judge_file(tmp_path, "return 0", "prompt, first, second, tone, **columns")
    with pytest.raises(ValueError, match="needs the column 'tone', and the problems have act, name, number"):
        check_judge(judge, PROBLEM.columns)
    with pytest.raises(ValueError, match="column 'first' has the name of an argument of the judge"):
        check_judge(f"{COURTESY}:prefer", {"first": 1})


def test_an_endpoint_that_does_not_answer_is_refused_before_sampling() -> None:
    judge = JudgeEndpoint(model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"judge: http://127.0.0.1:9/v1/chat/completions did not answer: ConnectError"):
        check_judge(judge, PROBLEM.columns)


def test_an_endpoint_judges_in_both_orders(serve: Callable[..., Any]) -> None:  # noqa: F811
    # It prefers "good", but calls a comparison it cannot decide for the first answer.
    server = serve(lambda word, said: f"{word} VERDICT: {'B' if said['ANSWER B'] == 'good' else 'A'}")
    judge = load_judge(JudgeEndpoint(**server.options))
    asked = [Comparison(PROBLEM, "bad", "good"), Comparison(PROBLEM, "fair", "plain")]
    assert mean_scores(judge, asked, 4, 2) == [-1.0, 0.0]
    assert len(server.requests) == 8  # repetitions are asked again
    unreadable = load_judge(JudgeEndpoint(**serve(lambda word, said: "either").options))
    assert mean_scores(unreadable, asked[:1], 2, 1) == [None]


def recipe(folder: Path, model: Path, judge: str, **pairs: Any) -> PairsRecipe:
    letters = [chr(ord("a") + i) for i in range(26)]
    return PairsRecipe(
        stage="pairs",
        model=ModelConfig(model_name_or_path=str(model)),
        data=DataConfig(task="arithmetic", max_prompt_length=40),
        rollout=CandidateConfig(engine="hf", num_generations=6, max_completion_length=24, stop=letters),
        judge=judge,
        pairs=PairsConfig(num_problems=6, chunk_size=2, num_comparisons=2, margin=0.0, **pairs),
        output=str(folder),
    )


def test_a_killed_run_continues_with_the_same_pairs(tmp_path: Path, tiny_v3: Path) -> None:
    from datasets import load_dataset

    judge = judge_file(tmp_path, COIN)
    whole = run(recipe(tmp_path / "whole", tiny_v3, judge, pairs_per_problem=4))
    killed = tmp_path / "killed"
    (killed / "chunks").mkdir(parents=True)
    (killed / "chunks/000000.jsonl").write_bytes((whole / "chunks/000000.jsonl").read_bytes())
    (killed / "chunks/000001.draft").write_text("half a chu")
    for name in ("recipe.yaml", "metrics.jsonl"):
        (killed / name).write_bytes((whole / name).read_bytes())
    assert run(recipe(killed, tiny_v3, judge, pairs_per_problem=4)) == killed
    rows = [load_dataset("parquet", data_dir=str(path / "data"), split="train").to_list() for path in (whole, killed)]
    assert rows[0] == rows[1] and len(rows[0]) >= 2
    assert list(rows[0][0]) == ["prompt", "chosen", "rejected", "judge_mean", "problem_id"]
    counts = json.loads((killed / "counts.json").read_text())
    assert counts == json.loads((whole / "counts.json").read_text())
    assert (counts["problems"], counts["candidates"], counts["kept"]) == (6, 36, len(rows[0]))


def with_rows(folder: Path, model: Path, judge: str, *prompts: str) -> PairsRecipe:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    data = DataConfig(dataset_name=str(folder / "rows.jsonl"), max_prompt_length=40)
    return recipe(folder / "run", model, judge, pairs_per_problem=4).model_copy(update={"data": data})


def test_rows_that_cannot_become_a_prompt_are_refused_or_counted(tmp_path: Path, tiny_v3: Path) -> None:
    judge = judge_file(tmp_path, COIN)
    with pytest.raises(RefusedError, match=r"data.max_prompt_length=40: none of 2 rows is usable \(2 too long\)"):
        run(with_rows(tmp_path, tiny_v3, judge, "x" * 50, "y" * 50))
    folder = run(with_rows(tmp_path, tiny_v3, judge, "1 + 1 =", "2 + 2 =", "3 + 3 =", "x" * 50))
    counts = json.loads((folder / "counts.json").read_text())
    assert (counts["problems"], counts["skipped_rows"]) == (6, 2)  # each row twice


def test_a_run_that_continues_with_other_weights_is_refused(tmp_path: Path, tiny_v3: Path) -> None:
    model = shutil.copytree(tiny_v3, tmp_path / "model")
    one = recipe(tmp_path / "run", model, judge_file(tmp_path, "return 0.3"))
    with pytest.raises(RefusedError, match="none of"):  # all chunks are there
        run(one)
    (model / "more.safetensors").write_bytes(b"other weights")
    with pytest.raises(RefusedError, match=r"run has samples from other weights than those now in .*/model \(hash"):
        run(one)


def test_no_pairs_above_the_margin_is_an_error(tmp_path: Path, tiny_v3: Path) -> None:
    with pytest.raises(ValueError, match=r"none of \d+ compared pairs is above pairs.margin=0 \("):
        run_pairs(recipe(tmp_path / "run", tiny_v3, judge_file(tmp_path, "return 0.3")))  # position alone


def test_an_odd_number_of_comparisons_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 2"):
        PairsConfig(num_problems=1, num_comparisons=3)

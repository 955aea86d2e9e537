"""Rewards in a plain script: no recipe, no main guard, strings and message lists, no process left running."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SCRIPT = """
import json, sys
from rewards import *

MESSAGES = sys.argv[1] == "messages"

def run(function, completions, **columns):
    prompts = ["q"] * len(completions)
    if MESSAGES:
        prompts = [[{"role": "user", "content": "q"}] for _ in completions]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    return function(prompts, completions, **columns)

right, wrong = r"<think>so</think> \\\\boxed{x^2+1}", r"\\\\boxed{x^2}"
gym = {"question": "q", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}
print(json.dumps({
    "accuracy": run(accuracy, [right, wrong], solution=["1+x^2"] * 2),
    "countdown": run(countdown, ["<answer>8*3+2</answer>", ""], numbers=[[3, 8, 2]] * 2, target=[26] * 2),
    "exact_match": run(exact_match, ["<answer>4</answer>", "4"], answer=["4"] * 2),
    "format": run(format, ["<think></think><answer></answer>", ""]),
    "language": run(language, ["我们算", "First we add the two numbers"], target_language="zh"),
    "multiple_choice": run(multiple_choice, ["<answer>(B)</answer>", r"\\\\boxed{A}"], answer=["B"] * 2),
    "random_reward": run(random_reward, ["a"], p=1.0),
    "reasoning_gym": run(reasoning_gym, ["<answer>4</answer>"], answer=["4"], metadata=[gym["metadata"]]),
    "repetition_penalty": run(repetition_penalty, ["a a a a", "a b c d"]),
    "soft_overlong_punishment": run(
        soft_overlong_punishment, ["x"], completion_ids=[[1] * 15], max_completion_len=20, soft_punish_cache=10),
    "cosine_scaled": run(cosine_scaled, [right], completion_ids=[[1]], solution=["x^2+1"], max_len=1),
    "relative_length": run(relative_length, [right] * 2, completion_ids=[[1], [1, 1]], solution=["x^2+1"] * 2),
}))
print([name for name in ("torch", "transformers", "grpo", "openai") if name in sys.modules])
"""

EXPECTED = {
    "accuracy": [1.0, 0.0],
    "countdown": [1.0, 0.0],
    "exact_match": [1.0, 0.0],
    "format": [1.0, 0.0],
    "language": [1.0, 0.0],
    "multiple_choice": [1.0, 0.0],
    "random_reward": [1.0],
    "reasoning_gym": [1.0],
    "repetition_penalty": [-0.5, 0.0],
    "soft_overlong_punishment": [-0.5],
    "cosine_scaled": [0.5],
    "relative_length": [0.5, -0.5],
}


@pytest.mark.parametrize("form", ["strings", "messages"])
def test_rewards_work_in_a_script_and_leave_no_process(tmp_path, form):
    (tmp_path / "script.py").write_text(SCRIPT.replace("\\\\\\\\", "\\"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MARK": str(tmp_path)}
    command = [sys.executable, "script.py", form]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    values, heavy = done.stdout.splitlines()
    assert json.loads(values) == EXPECTED
    assert heavy == "[]"
    deadline = time.monotonic() + 30
    while left := children_of(tmp_path):
        assert time.monotonic() < deadline, f"processes {left} outlive the script"
        time.sleep(0.05)


def children_of(mark: Path) -> list[int]:
    """Processes with the script's environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # gone, or another user's
    return found

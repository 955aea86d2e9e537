"""The scorer: weighted sums, workers that score while groups arrive, and failures."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from rewards.runner.score import RewardError, Rewards, RewardSpec
from rollout.types import Completion, Group, Problem


def group(texts, *, prompt="q", id="p/0", **columns):
    completions = [
        Completion(token_ids=[7] * len(t), logprobs=[0.0] * len(t), text=t, finish_reason="stop", policy_version=0)
        for t in texts
    ]
    return Group(problem=Problem(id=id, prompt=prompt, columns=columns), prompt_ids=[1], completions=completions)


def score_all(specs, groups, num_workers=0, base_dir=None, timeout=None):
    specs = [RewardSpec(**spec) for spec in specs]
    rewards = Rewards(specs, num_workers=num_workers, base_dir=base_dir, timeout=timeout)
    try:
        return list(rewards.score(groups))
    finally:
        rewards.close()


def write_reward(folder: Path, body: str) -> str:
    """Write a user's file that defines the function `mine`; returns its spec."""
    (folder / "mine.py").write_text(f"import os, sys, time\n\n{body}\n")
    return "mine.py:mine"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rewards_are_weighted_sums_and_the_breakdown_is_kept(num_workers):
    texts = ["<think>.</think><answer>8*3+2</answer>", "<answer>8*3+2</answer>", "8*3+2"]
    specs = [{"function": "countdown"}, {"function": "format", "weight": 0.5}]
    (scored,) = score_all(specs, [group(texts, numbers=[3, 8, 2], target=26)], num_workers)
    assert scored.rewards == [1.5, 1.0, 0.0]
    assert scored.breakdown == {"countdown": [1.0, 1.0, 0.0], "format": [1.0, 0.0, 0.0]}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_function_that_ends_the_program_is_an_error_of_its_own(tmp_path, num_workers):
    function = write_reward(tmp_path, "def mine(prompts, completions, **kwargs):\n    sys.exit(3)")
    with pytest.raises(RewardError, match=r"reward 'mine' called sys.exit\(3\)"):
        score_all([{"function": function}], [group(["a"])], num_workers, tmp_path)


def test_none_is_left_out_of_the_sum_and_all_none_is_nan():
    def first(prompts, completions, **kwargs):
        return [1, None, None]

    def second(prompts, completions, **kwargs):
        return [np.float32(0.5), True, None]

    (scored,) = score_all([{"function": first, "weight": 2.0}, {"function": second}], [group(["a", "b", "c"])])
    assert scored.rewards[:2] == [2.5, 1.0] and math.isnan(scored.rewards[2])
    assert scored.breakdown == {"first": [1.0, None, None], "second": [0.5, 1.0, None]}


def test_functions_get_the_arguments_trl_passes():
    seen = {}

    def look(trainer_state, log_metric, log_extra, **kwargs):
        seen.update(kwargs)
        assert (trainer_state.global_step, trainer_state.max_steps) == (0, 0)
        return [0.0, 0.0]

    score_all([{"function": look, "options": {"rate": 3}}], [group(["a", "bb"], prompt="q", target=26)])
    assert seen == {
        "prompts": ["q", "q"],
        "completions": ["a", "bb"],
        "completion_ids": [[7], [7, 7]],
        "target": [26, 26],
        "rate": 3,
    }
    score_all([{"function": look}], [group(["a", "bb"], prompt=[{"role": "user", "content": "q"}])])
    assert seen["prompts"] == [[{"role": "user", "content": "q"}]] * 2
    assert seen["completions"] == [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "bb"}]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_async_functions_share_one_event_loop(tmp_path, num_workers):
    spec = write_reward(
        tmp_path,
        "import asyncio\nlock = asyncio.Lock()\nloops = set()\n"
        "async def mine(prompts, completions, **kwargs):\n"
        "    async with lock:\n        await asyncio.sleep(0)\n"
        "    loops.add(asyncio.get_running_loop())\n    return [len(loops)] * len(completions)",
    )
    scored = score_all([{"function": spec}], [group(["a"]), group(["b"])], num_workers, tmp_path)
    assert [s.rewards for s in scored] == [[1.0], [1.0]]


def test_groups_are_scored_while_the_next_are_generated_and_keep_their_order(tmp_path):
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, mark, wait_for, **kwargs):\n"
        "    while wait_for[0] and not os.path.exists(wait_for[0]):\n        time.sleep(0.01)\n"
        "    open(mark[0], 'w').close()\n    return [1.0] * len(completions)",
    )
    marks = [tmp_path / f"scored{i}" for i in range(4)]
    generated = tmp_path / "generated"

    def engine():
        yield group(["a"], id="p/0", mark=str(marks[0]), wait_for=str(generated))
        yield group(["a"], id="p/1", mark=str(marks[1]), wait_for="")
        yield group(["a"], id="p/2", mark=str(marks[2]), wait_for="")
        deadline = time.monotonic() + 60
        while not (marks[1].exists() and marks[2].exists()):
            assert time.monotonic() < deadline, "nothing was scored during generation"
            time.sleep(0.01)
        assert not marks[0].exists()
        generated.touch()
        yield group(["a"], id="p/3", mark=str(marks[3]), wait_for="")

    scored = score_all([{"function": spec}], engine(), 2, tmp_path)
    assert [s.group.problem.id for s in scored] == ["p/0", "p/1", "p/2", "p/3"]


def test_workers_import_no_torch_and_start_with_the_first_group(tmp_path):

    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, **kwargs):\n"
        "    heavy = [m for m in ('torch', 'vllm', 'transformers', 'grpo') if m in sys.modules]\n"
        "    assert not heavy, heavy\n    return [os.getpid()] * len(completions)",
    )
    others = children()  # of tests before this one
    rewards = Rewards([RewardSpec(function=spec)], num_workers=2, base_dir=tmp_path)
    assert children() <= others
    pids = {int(s.rewards[0]) for s in rewards.score(group(["a"]) for _ in range(4))}
    assert pids <= children() and os.getpid() not in pids
    assert {int(s.rewards[0]) for s in rewards.score([group(["a"])])} <= pids, "the pool was not kept"
    rewards.close()
    assert children() <= others


def children() -> set[int]:
    """Pids of this process's reward workers."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if any("rewards.runner.remote" in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def test_workers_do_not_rerun_the_main_script(tmp_path):
    """Under `accelerate launch recipe.yaml` the main script is the recipe."""
    script = tmp_path / "unguarded.yaml"
    script.write_text(
        "print('main runs')\n"
        "from rewards.runner.score import Rewards, RewardSpec\n"
        "from rollout.types import Completion, Group, Problem\n"
        "c = Completion(token_ids=[1], logprobs=[0.0], text='a', finish_reason='stop', policy_version=0)\n"
        "g = Group(problem=Problem(id='p', prompt='q', columns={'answer': 'a'}), prompt_ids=[1], completions=[c, c])\n"
        "rewards = Rewards([RewardSpec(function='exact_match')], num_workers=2)\n"
        "print([s.rewards for s in rewards.score([g, g])])\n"
    )  # ends without close(): the workers must end with it
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment
    )
    assert run.stdout == "main runs\n[[0.0, 0.0], [0.0, 0.0]]\n", run.stderr
    assert run.stderr == ""


def test_a_killed_worker_costs_only_time(tmp_path):
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, pid_file, **kwargs):\n"
        "    if not os.path.exists(pid_file[0]):\n"
        "        with open(pid_file[0] + '.part', 'w') as f: f.write(str(os.getpid()))\n"
        "        os.rename(pid_file[0] + '.part', pid_file[0])\n"
        "        time.sleep(600)\n"
        "    return [len(c) for c in completions]",
    )
    pid_file = tmp_path / "pid"

    def engine():
        yield group(["a", "bb"], pid_file=str(pid_file))
        while not pid_file.exists():
            time.sleep(0.01)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        yield group(["ccc", "d"], pid_file=str(pid_file))

    started = time.perf_counter()
    scored = score_all([{"function": spec}], engine(), 1, tmp_path)
    assert [s.rewards for s in scored] == [[1.0, 2.0], [3.0, 1.0]]
    assert time.perf_counter() - started < 300


def test_fast_groups_share_a_message_and_slow_ones_travel_alone(tmp_path):
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, seconds, **kwargs):\n"
        "    time.sleep(seconds[0])\n"
        "    frame = sys._getframe()\n"
        "    while 'items' not in frame.f_locals: frame = frame.f_back\n"
        "    return [len(frame.f_locals['items'])] * len(completions)",
    )

    def sizes(seconds):
        groups = [group(["a"], id=f"p/{index}", seconds=seconds) for index in range(40)]
        return [int(s.rewards[0]) for s in score_all([{"function": spec}], groups, 2, tmp_path)]

    assert max(sizes(0.0)) > 1
    assert set(sizes(0.02)) == {1}


def test_slow_groups_behind_fast_ones_are_shared_among_the_workers(tmp_path):
    body = "def mine(prompts, completions, seconds, **kwargs):\n    time.sleep(seconds[0])\n    return [os.getpid()]"
    rewards = Rewards([RewardSpec(function=write_reward(tmp_path, body))], num_workers=2, base_dir=tmp_path)
    list(rewards.score([group(["a"], seconds=0.0) for _ in range(60)]))  # the pool learns that groups are fast
    seconds = [0.0] * 60 + [0.05] * 40
    scored = list(rewards.score([group(["a"], id=f"p/{i}", seconds=s) for i, s in enumerate(seconds)]))
    assert [s.group.problem.id for s in scored] == [f"p/{i}" for i in range(100)]
    assert len({s.rewards[0] for s in scored[60:]}) == 2
    rewards.close()


def test_closing_the_workers_raises_in_a_thread_that_waits_for_a_group(tmp_path):
    spec = write_reward(tmp_path, "def mine(prompts, completions, **kwargs):\n    time.sleep(600)")
    others = children()
    rewards = Rewards([RewardSpec(function=spec)], num_workers=1, base_dir=tmp_path)
    errors = []

    def wait():
        try:
            list(rewards.score([group(["a"]), group(["b"])]))
        except RewardError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while not children() - others:
        time.sleep(0.01)
    rewards.close()
    thread.join(60)
    assert errors == ["the reward workers were closed before this group was scored."]


def test_a_group_that_kills_its_worker_affects_no_other(tmp_path):
    """Although they shared a message; the error names the one at fault."""
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, **kwargs):\n"
        "    if completions[0] == 'bad': os.kill(os.getpid(), 9)\n    return [1.0]",
    )
    rewards = Rewards([RewardSpec(function=spec)], num_workers=1, base_dir=tmp_path)
    list(rewards.score([group(["a"])]))  # the pool learns that groups are fast
    scored = rewards.score([group(["bad" if index == 30 else "a"], id=f"p/{index}") for index in range(40)])
    with pytest.raises(RewardError, match=r"(?s)died twice \(exit codes \[-9, -9\].*problem 'p/30'"):
        for index, one in enumerate(scored):
            assert one.group.problem.id == f"p/{index}" and one.rewards == [1.0]
    assert index == 29
    rewards.close()


def test_a_group_that_kills_its_worker_twice_stops_the_run(tmp_path):
    spec = write_reward(tmp_path, "def mine(prompts, completions, **kwargs):\n    os.kill(os.getpid(), 9)")
    with pytest.raises(RewardError, match=r"(?s)reward 'mine' died twice \(exit codes \[-9, -9\].*problem 'p/7'"):
        score_all([{"function": spec}], [group(["a"], id="p/7")], 1, tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_reward_that_raises_is_reported_with_its_name_the_sample_and_the_traceback(tmp_path, num_workers):
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, **kwargs):\n    return [1 / (len(c) - 3) for c in completions]",
    )
    with pytest.raises(RewardError) as error:
        score_all([{"function": spec}], [group(["a", "bad", "c"], id="gsm8k/7")], num_workers, tmp_path)
    assert str(error.value) == (
        "reward 'mine' raised ZeroDivisionError: division by zero\n"
        "It was given completion 2 of 3 for problem 'gsm8k/7', which begins 'bad'."
    )
    cause = error.value.__cause__
    assert isinstance(cause, ZeroDivisionError) or "1 / (len(c) - 3)" in str(cause)


def test_a_reward_that_exceeds_the_time_limit_stops_the_run_and_loses_its_worker(tmp_path):
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, pid_file, **kwargs):\n"
        "    if completions[0] == 'slow':\n"
        "        with open(pid_file[0], 'w') as f: f.write(str(os.getpid()))\n"
        "        time.sleep(600)\n"
        "    return [1.0] * len(completions)",
    )
    pid_file = tmp_path / "pid"
    specs = [{"function": spec}, {"function": "format"}]
    groups = [group([text, "b"], id=f"p/{i}", pid_file=str(pid_file)) for i, text in enumerate(["a", "slow", "c"])]
    with pytest.raises(RewardError) as error:
        score_all(specs, groups, 1, tmp_path, timeout=0.5)
    assert str(error.value) == (
        "reward 'mine' did not return within the time limit of 0.5 s for a group.\n"
        "It was given completion 1 of 2 for problem 'p/1', which begins 'slow'. "
        "Make it faster or have it give up earlier, or raise trainer.reward_timeout."
    )
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


HANGING = {
    "sleep": "def mine(prompts, completions, **kwargs):\n    time.sleep(600)",
    "loop": "def mine(prompts, completions, **kwargs):\n    while True: pass",
    "async": "import asyncio\nasync def mine(prompts, completions, **kwargs):\n    await asyncio.sleep(600)",
    "suppressed": (  # as in a function that gives such completions 0
        "def mine(prompts, completions, **kwargs):\n    try: time.sleep(600)\n    except Exception: return [0.0]"
    ),
    "alarm": (  # as math_verify uses it
        "import signal\ndef mine(prompts, completions, **kwargs):\n"
        "    signal.alarm(5)\n    signal.alarm(0)\n    time.sleep(600)"
    ),
}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", HANGING)
def test_a_hanging_reward_is_named_after_the_time_limit_and_nothing_is_left_running(tmp_path, kind, num_workers):
    specs = [{"function": "format"}, {"function": write_reward(tmp_path, HANGING[kind])}]
    others, started, threads = children(), time.perf_counter(), threading.active_count()
    with pytest.raises(RewardError, match=r"^reward 'mine' did not return within the time limit of 0\.5 s for a group"):
        score_all(specs, [group(["a"])], num_workers, tmp_path, timeout=0.5)
    assert time.perf_counter() - started < 60
    assert children() <= others and threading.active_count() <= threads


def test_a_hanging_callable_is_interrupted_and_the_next_call_works():
    hang = [True]

    async def mine(completions, **kwargs):
        if hang[0]:
            await asyncio.sleep(600)
        return [1.0] * len(completions)

    rewards = Rewards([RewardSpec(function=mine)], num_workers=2, timeout=0.3)
    with pytest.raises(RewardError, match=r"reward 'mine' did not return within the time limit of 0\.3 s"):
        list(rewards.score([group(["a"])]))
    hang[0] = False
    assert [scored.rewards for scored in rewards.score([group(["a"])])] == [[1.0]]
    rewards.close()


def test_a_reward_that_cannot_be_interrupted_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("rewards.runner.remote._GRACE", 0.5)
    others = children()
    body = (
        "import signal\ndef mine(prompts, completions, **kwargs):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n    time.sleep(600)"
    )
    specs = [{"function": write_reward(tmp_path, body)}, {"function": "format"}]
    with pytest.raises(
        RewardError, match="one of the rewards 'mine', 'format' did not return within the time limit of 1 s"
    ):
        score_all(specs, [group(["a"])], 1, tmp_path, timeout=1.0)
    assert children() <= others


def test_an_error_leaves_the_rest_unscored_and_close_returns_at_once(tmp_path):
    spec = write_reward(
        tmp_path,
        "def mine(prompts, completions, **kwargs):\n"
        "    if completions[0] == 'bad': raise RuntimeError('bad')\n    time.sleep(600)",
    )
    started = time.perf_counter()
    with pytest.raises(RewardError, match="raised RuntimeError: bad"):
        score_all([{"function": spec}], [group(["bad"])] + [group(["a"])] * 5, 2, tmp_path)
    assert time.perf_counter() - started < 300

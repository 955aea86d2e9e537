"""TRL's own reward functions, called directly and through our workers; TRL's log functions."""

import pytest

from rewards.runner.score import RewardError, Rewards, RewardSpec, TrainerState
from tests.rewards.runner.test_score import group, score_all, write_reward

TEXTS = [
    r"<think>3 of them</think>\boxed{\frac{1}{3}}",
    r"<think>.</think> \boxed{\frac{2}{6}}",
    r"\boxed{\frac{1}{2}}",
    "<think> one third",
    "",
]
FACTORIES = {
    "get_cosine_scaled_reward": {"max_len": 60},
    "get_repetition_penalty_reward": {"ngram_size": 1, "max_penalty": -0.5},
    "get_soft_overlong_punishment": {"max_completion_len": 40, "soft_punish_cache": 30},
}


@pytest.mark.parametrize("solution", [r"\frac{1}{3}", "no mathematics"])
def test_trls_rewards_return_the_same_values_as_in_trl(solution):
    trl = pytest.importorskip("trl.rewards")
    names = [name for names in trl._import_structure.values() for name in names]
    assert len(names) >= 6 and set(FACTORIES) == {name for name in names if name.startswith("get_")}
    specs = [{"function": f"trl.rewards:{name}", "options": FACTORIES.get(name, {})} for name in names]
    (scored,) = score_all(
        specs, [group(TEXTS, prompt=[{"role": "user", "content": "How much?"}], solution=solution)], 1
    )
    extras = {}
    arguments = {
        "prompts": [[{"role": "user", "content": "How much?"}]] * 5,
        "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
        "completion_ids": [[7] * len(text) for text in TEXTS],
        "solution": [solution] * 5,
        "log_extra": lambda column, values: extras.setdefault(column, values),
    }
    for name in names:
        function = getattr(trl, name)
        function = function(**FACTORIES[name]) if name in FACTORIES else function
        assert scored.breakdown[name] == function(**arguments), name
    assert scored.extras["gold_parsed"] == extras["gold_parsed"]
    assert scored.extras["reasoning_accuracy_reward/answer_parsed"][3] == "[incomplete reasoning]"


def test_a_reward_that_reads_messages_is_told_of_prompts_that_are_strings():
    pytest.importorskip("trl.rewards")
    with pytest.raises(RewardError) as error:
        score_all([{"function": "trl.rewards:think_format_reward"}], [group(["a"])])
    assert str(error.value).startswith(
        "reward 'think_format_reward' raised TypeError: string indices must be integers, not 'str'. The prompts are "
        "strings, and so are the completions: a function that reads messages, completion[0]['content'], needs prompts "
        "that are lists of messages."
    )
    (scored,) = score_all(
        [{"function": "trl.rewards:think_format_reward"}], [group(["a"], prompt=[{"role": "user", "content": "q"}])]
    )
    assert scored.rewards == [0.0]


def test_a_factory_without_a_required_option_is_rejected():
    trl = "trl.rewards:get_soft_overlong_punishment"
    pytest.importorskip("trl.rewards")
    with pytest.raises(ValueError, match=r"options={'max_completion_len': 9} do not fit .missing .*soft_punish_cache"):
        Rewards([RewardSpec(function=trl, options={"max_completion_len": 9})], num_workers=0)


LOGS = (
    "def mine(prompts, completions, log_metric, log_extra, trainer_state, **kwargs):\n"
    "    for text in completions:\n"
    "        log_metric('letters', len(text))\n"
    "        log_extra('upper', [text.upper()])\n"
    "    log_extra('path', [os] * len(completions))\n"
    "    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)"
)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_logged_metrics_and_extras_come_back_from_the_worker(tmp_path, num_workers):
    spec = RewardSpec(function=write_reward(tmp_path, LOGS))
    rewards = Rewards([spec], num_workers=num_workers, base_dir=tmp_path)
    rewards.state = TrainerState(global_step=3, max_steps=12)
    first, second = rewards.score([group(["a", "bb"]), group(["ccc"])])
    rewards.close()
    assert (first.rewards, second.rewards) == ([0.25, 0.25], [0.25])
    assert (first.metrics, second.metrics) == ({"letters": [1.0, 2.0]}, {"letters": [3.0]})
    assert first.extras["upper"] == ["A", "BB"]
    assert first.extras["path"][0].startswith("<module 'os'")  # values JSON cannot represent become strings


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "log_metric('x', float('nan'))",
            r"raised ValueError: log_metric\('x', nan\): a metric must be finite",
        ),
        ("log_metric('x', 'many')", "raised TypeError"),
        ("log_extra('x', [1])", r"passed 1 values to log_extra\('x', …\) for 2 completions. Pass one per completion"),
    ],
)
def test_an_invalid_logged_value_stops_the_run(body, message):
    def mine(prompts, log_metric, log_extra, **kwargs):
        eval(body, {"log_metric": log_metric, "log_extra": log_extra})
        return [0.0] * len(prompts)

    with pytest.raises(RewardError, match=f"reward 'mine' {message}"):
        score_all([{"function": mine}], [group(["a", "b"])])

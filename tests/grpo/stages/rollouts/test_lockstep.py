"""`rollout.max_staleness: 0`: take, sample, score, update, publish, one after the other and bit for bit."""

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import grpo
from grpo.algorithm.entropy import EntropyBonus
from grpo.learner.batch import assemble
from grpo.learner.objective import loss_function
from grpo.model.weights import checkpoint_weights
from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import load_recipe
from grpo.stages.build import build
from grpo.stages.grpo import Trainer
from rollout.data.stream import ProblemStream

STEPS = 3
REWARD = """
def vowels(completions, **_):
    return [sum(map(text.count, "aeiou")) + len(text) / 8 for text in completions]
"""


def recipe_of(model: Path, folder: Path, **rollout: Any) -> Path:
    reward = folder.with_suffix(".py")
    reward.write_text(REWARD)
    recipe = {
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 40},
        "rollout": {
            "engine": "hf",
            "problems_per_step": 3,
            "num_generations": 4,
            "max_completion_length": 6,
            **rollout,
        },
        "rewards": [{"function": str(reward) + ":vowels"}],
        "trainer": {"output_dir": str(folder), "max_steps": STEPS, "learning_rate": 1e-3, "num_reward_workers": 1},
        "evaluation": {"num_problems": 0},
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    return path


def by_hand(path: Path) -> dict[str, torch.Tensor]:
    """The weights after the same steps, without `Rollouts` and the loop."""
    recipe = load_recipe(path)
    assert isinstance(recipe, GRPORecipe)
    with closing(build(recipe)) as parts:
        assert isinstance(parts.problems, ProblemStream)  # not one that remembers what was trained on
        trainer = Trainer(parts)
        for step in range(STEPS):
            prompts = parts.problems.take(3)
            groups = {g.problem.id: g for g in parts.engine.generate(prompts, recipe.rollout_sampling(step))}
            scored = list(parts.rewards.score(groups[prompt.problem.id] for prompt in prompts))
            trainer.step = step
            samples = assemble(scored, trainer.plan(scored), keep_zero_advantage=False)
            assert samples
            parts.policy.update(samples, loss_function(recipe.algorithm, EntropyBonus(recipe.algorithm)))
            parts.publisher.publish(parts.policy.weights(), step + 1)
        return {name: weight.clone() for name, weight in checkpoint_weights(parts.policy.model)}


def test_lockstep_trains_bit_for_bit_as_one_thing_after_the_other(tiny_llama: Path, tmp_path: Path) -> None:
    saved = grpo.train(recipe_of(tiny_llama, tmp_path / "run", max_staleness=0))
    run = load_file(saved / "model.safetensors")
    expected = by_hand(recipe_of(tiny_llama, tmp_path / "by_hand"))
    before = load_file(tiny_llama / "model.safetensors")
    assert run.keys() == expected.keys()
    assert all(torch.equal(run[name], expected[name]) for name in run)
    assert not any(torch.equal(run[name], before[name]) for name in run)

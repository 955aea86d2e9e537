"""Same tiny dense model, same completions, same rewards: TRL's GRPOTrainer and ours, loss and gradients."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grpo.algorithm.advantage import decoupled_advantages, leave_one_out_advantages
from grpo.algorithm.entropy import EntropyBonus
from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.objective import loss_function
from grpo.recipe.algorithm import AlgorithmConfig
from tests.grpo.learner.policy_gradients import (
    MAX_COMPLETION_LENGTH,
    gradients,
    make_groups,
    policy_for,
    recipe_for,
    with_noise,
)

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
GROUPS = make_groups()
COMPLETIONS = [c for g in GROUPS for c in g.group.completions]
PROMPTS = [list(g.group.prompt_ids) for g in GROUPS for _ in g.group.completions]


def engine_logprobs(token_ids: Sequence[int]) -> list[float]:
    """Of an engine that is not quite the policy, whose log-probs are about -log 263 = -5.57."""
    return np.random.default_rng(sum(token_ids)).uniform(-5.9, -5.2, len(token_ids)).tolist()


class KeepGradients(TrainerCallback):
    """Called by transformers' Trainer after the backward passes of a step, before the optimizer."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        named = model.named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


def trl_trainer(
    model_path: Path, out: Path, reward_funcs: list | None = None, **options: Any
) -> tuple[Any, KeepGradients]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def same_completions(prompts: list, trainer: Any) -> dict:
        # TRL shuffles the dataset; the prompt text is the group's number.
        rows = [4 * int(p) + i % 4 for i, p in enumerate(prompts)]
        return {
            "prompt_ids": [PROMPTS[r] for r in rows],
            "completion_ids": [list(COMPLETIONS[r].token_ids) for r in rows],
            "logprobs": [engine_logprobs(COMPLETIONS[r].token_ids) for r in rows],
        }

    def same_rewards(prompts: list, **kwargs: Any) -> list[float]:
        return [GROUPS[int(p)].rewards[i % 4] for i, p in enumerate(prompts)]

    keep = KeepGradients()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        reward_funcs=reward_funcs or [same_rewards],
        args=GRPOConfig(
            output_dir=str(out),
            per_device_train_batch_size=options.pop("per_device_train_batch_size", len(COMPLETIONS)),
            num_generations=4,
            max_completion_length=MAX_COMPLETION_LENGTH,
            max_steps=options.pop("max_steps", 1),
            max_grad_norm=0.0,
            learning_rate=1e-6,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **{"use_bias_correction_kl": False, **options},
        ),
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(GROUPS))]),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        rollout_func=same_completions,
        callbacks=[keep],
    )
    return trainer, keep


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert got.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=tolerance * largest)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_a_whole_step_of_trl_has_our_gradients(
    tiny_llama: Path, tmp_path: Path, loss_type: str, scale_rewards: str
) -> None:
    """Advantages, dropped samples and denominators included: TRL gets prompts, completions and rewards alone."""
    trainer, keep = trl_trainer(tiny_llama, tmp_path, loss_type=loss_type, scale_rewards=scale_rewards)
    trainer.train()
    recipe = recipe_for(str(tiny_llama), loss_type=loss_type)
    algorithm = recipe.algorithm.model_copy(update={"scale_rewards": scale_rewards})
    ours, _ = gradients(recipe.model_copy(update={"algorithm": algorithm}), on_policy=True)
    assert_equal(ours, keep.gradients)


CORRECTIONS: dict[str, tuple[str, dict[str, float]]] = {  # TRL's mode, and bounds that some ratios are outside of
    "tis": ("token_truncate", {"max": 1.1}),
    "sequence_tis": ("sequence_truncate", {"max": 1.1}),
    "token_mis": ("token_mask", {"max": 1.1}),
    "mis": ("sequence_mask", {"max": 1.1}),
    "icepop": ("token_mask", {"min": 0.9, "max": 1.1}),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_have_trls_gradients(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    """A whole step, in which TRL takes the completions for vLLM's and corrects for the engine's log-probs."""
    mode, bounds = CORRECTIONS[name]
    theirs = {f"vllm_importance_sampling_clip_{end}": value for end, value in bounds.items()}
    trainer, keep = trl_trainer(tiny_llama, tmp_path, loss_type="dapo", vllm_importance_sampling_mode=mode, **theirs)
    generate = trainer._generate

    def as_if_from_vllm(*args: Any) -> Any:
        generated = generate(*args)
        trainer.use_vllm = True
        return generated

    trainer._generate = as_if_from_vllm
    trainer.train()
    bounds = {f"importance_sampling_clip_{end}": value for end, value in bounds.items()}
    recipe = recipe_for(str(tiny_llama), loss_type="dapo", importance_sampling_correction=name, **bounds)
    whole = Plan.of(Shapes.of(GROUPS), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = assemble(GROUPS, whole, keep_zero_advantage=False)
    engine = [np.array(engine_logprobs(sample.completion_ids)) for sample in samples]
    policy = policy_for(recipe, Accelerator(cpu=True))
    metrics = policy.update(attach(samples, sampling_logprobs=engine), loss_function(recipe.algorithm))
    assert 0 < metrics["sampling/importance_sampling_ratio/clipped_share"].value < 1
    assert_equal({n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}, keep.gradients)


def test_rloo_has_trls_advantages(tiny_llama: Path, tmp_path: Path) -> None:
    """TRL's own RLOOTrainer, with samples of its own; one completion has no reward."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    values = np.random.default_rng(2).normal(size=(3, 4))
    values[1, 2] = np.nan
    given = [None if np.isnan(value) else value for value in values.ravel()]
    trainer = RLOOTrainer(
        model=str(tiny_llama),
        reward_funcs=[lambda **_: given],
        args=RLOOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=12,
            num_generations=4,
            max_completion_length=2,
            max_steps=1,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 3),
    )
    trainer.train()
    theirs = np.array(list(trainer._logs["advantages"])).reshape(3, 4)
    np.testing.assert_allclose(leave_one_out_advantages(values), theirs, rtol=1e-5, atol=1e-6)
    assert theirs[1, 2] == 0 and np.ptp(theirs) > 1


def test_an_entropy_target_is_followed_as_in_trl(tiny_llama: Path, tmp_path: Path) -> None:
    """Five updates; the model's entropy of about 5.5 is below the target first, then above it."""
    targets = {1: 9.0, 2: 9.0, 3: 9.0, 4: 1.0, 5: 9.0}
    settings = {"entropy_coef": 0.01, "entropy_coef_delta": 0.004, "entropy_coef_max": 0.02}
    trainer, _ = trl_trainer(
        tiny_llama,
        tmp_path,
        max_steps=5,
        use_adaptive_entropy=True,
        entropy_target=9.0,
        entropy_coef_min=0.0,
        **settings,
    )
    bonus, got = EntropyBonus(AlgorithmConfig(entropy_target=9.0, **settings)), []

    class Follow(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            trainer.args.entropy_target = bonus.target = targets[state.global_step + 1]

        def on_step_end(self, args, state, control, **kwargs) -> None:
            bonus.observe(trainer._last_world_entropy)
            got.append(bonus.controlled)
            assert bonus.controlled == pytest.approx(trainer.entropy_coef, abs=1e-12)

    trainer.add_callback(Follow())
    trainer.train()
    assert got == pytest.approx([0.014, 0.018, 0.02, 0.016, 0.02])


def test_normalize_then_sum_has_trls_advantages(tiny_llama: Path, tmp_path: Path) -> None:
    """Three rewards of different size; some do not apply, to one sample none does, to one group only the first."""
    values = np.random.default_rng(1).normal(size=(len(GROUPS), 4, 3)).round(1) * [1.0, 10.0, 0.1]
    values[0, :, 0] = 0.5  # no spread
    values[1, 2, 1] = values[2, 3] = values[3, :, 1:] = np.nan
    values[4, 1:, 2] = np.nan  # one sample alone has this reward
    weights = [1.0, 0.5, -2.0]

    def reward(k: int) -> Any:
        def function(prompts: list, **kwargs: Any) -> list[float | None]:
            own = [float(values[int(p), i % 4, k]) for i, p in enumerate(prompts)]
            return [None if np.isnan(value) else value for value in own]

        function.__name__ = f"reward_{k}"
        return function

    trainer, _ = trl_trainer(
        tiny_llama,
        tmp_path,
        reward_funcs=[reward(k) for k in range(3)],
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=weights,
    )
    trainer.train()
    logged = trainer._logs
    order = [int(prompt) for prompt in list(logged["prompt"])[::4]]
    theirs = np.array(list(logged["advantages"])).reshape(len(GROUPS), 4)[np.argsort(order)]
    ours = decoupled_advantages(values, np.array(weights))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.ptp(theirs) > 1 and theirs[2, 3] == 0


def test_accumulation_in_trl_equals_our_micro_batches(tiny_llama: Path, tmp_path: Path) -> None:
    trainer, keep = trl_trainer(
        tiny_llama, tmp_path, loss_type="dapo", per_device_train_batch_size=8, gradient_accumulation_steps=3
    )
    trainer.train()
    ours, _ = gradients(recipe_for(str(tiny_llama), loss_type="dapo", max_tokens=40), on_policy=True)
    assert_equal(ours, keep.gradients)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_loss_and_gradients_off_policy(tiny_llama: Path, tmp_path: Path, loss_type: str, beta: float) -> None:
    """Clipping and KL: TRL's loss on the same old and reference log-probs."""
    trainer, _ = trl_trainer(tiny_llama, tmp_path, loss_type=loss_type, beta=beta)
    whole = Plan.of(Shapes.of(GROUPS), AlgorithmConfig(), max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = with_noise(every_sample(whole.advantages.ravel()), beta)
    inputs = trl_inputs(samples)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    ours, our_loss = gradients(recipe_for(str(tiny_llama), loss_type=loss_type, beta=beta))
    assert our_loss == pytest.approx(loss.item(), rel=1e-5)
    assert_equal(ours, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, and TRL's where its words differ
    "gspo": ({"loss_type": "gspo"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "luspo": ({"loss_type": "luspo"}, {"loss_type": "luspo", "importance_sampling_level": "sequence"}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, {}),
    "sapo": ({"loss_type": "sapo"}, {}),
    "dual clip": ({"loss_type": "dapo", "delta": 1.5}, {}),
    "unbiased KL": ({"loss_type": "dapo", "beta": 0.05, "use_bias_correction_kl": True}, {}),
    "off-policy mask": ({"loss_type": "dapo", "beta": 0.05, "off_policy_mask_threshold": 0.1}, {}),
    "vespo": ({"loss_type": "vespo"}, {}),
    "entropy": ({"loss_type": "bnpo", "entropy_coef": 0.1}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_trls_loss_and_gradients(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    ours, theirs = VARIANTS[name]
    beta = ours.get("beta", 0.0)
    trainer, _ = trl_trainer(tiny_llama, tmp_path, **{**ours, **theirs})
    whole = Plan.of(Shapes.of(GROUPS), AlgorithmConfig(), max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    inputs = trl_inputs(with_noise(every_sample(whole.advantages.ravel()), beta))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    got, our_loss = gradients(recipe_for(str(tiny_llama), **ours))
    assert our_loss == pytest.approx(loss.item(), rel=1e-5)
    tolerance = 1e-5 if name == "vespo" else 1e-6  # its weights are exponentials of sums, which float32 rounds
    assert_equal(got, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}, tolerance)


def every_sample(advantages: Any) -> list[Sample]:
    return [
        Sample(
            problem_id="p",
            prompt_ids=prompt,
            completion_ids=c.token_ids,
            sampling_logprobs=0.0,
            advantages=float(a),
            token_weights=1.0,
            mini_batch=0,
        )
        for prompt, c, a in zip(PROMPTS, COMPLETIONS, advantages, strict=True)
    ]


def trl_inputs(samples: list[Sample]) -> dict[str, torch.Tensor]:
    def right(rows: list) -> torch.Tensor:
        return pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True)

    prompts = [torch.tensor(s.prompt_ids) for s in samples]
    completions = [list(s.completion_ids) for s in samples]
    inputs = {
        "prompt_ids": pad_sequence(prompts, batch_first=True, padding_side="left"),
        "prompt_mask": pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"),
        "completion_ids": right(completions),
        "completion_mask": right([[1] * len(c) for c in completions]),
        "advantages": torch.tensor([s.advantages for s in samples], dtype=torch.float32),
        "old_per_token_logps": right([s.old_logprobs for s in samples]).float(),
        "sampling_per_token_logps": right([s.sampling_logprobs for s in samples]).float(),
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
    }
    # VESPO takes this into its ratio, which thus is the policy's to the engine; it is not masked there.
    engine = [np.exp(np.asarray(s.old_logprobs) - np.asarray(s.sampling_logprobs)) for s in samples]
    inputs["importance_sampling_ratio"] = pad_sequence(
        [torch.as_tensor(row) for row in engine], batch_first=True, padding_value=1.0
    ).float()
    if samples[0].ref_logprobs is not None:
        inputs["ref_per_token_logps"] = right([s.ref_logprobs for s in samples]).float()
    return inputs


def test_our_batch_has_trls_denominators() -> None:
    """A guard for the tests above: the first group has no gradient and is dropped, so ours trains on fewer samples."""
    whole = Plan.of(Shapes.of(GROUPS), AlgorithmConfig(), max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    assert len(assemble(GROUPS, whole, keep_zero_advantage=False)) < len(COMPLETIONS)

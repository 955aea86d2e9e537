"""From a recipe to the parts of a run. What each part needs of the recipe is said here and nowhere else."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo.algorithm.entropy import EntropyBonus
from grpo.algorithm.plan import check_steps
from grpo.evaluation.training import HeldOut, reward_held_out, task_held_out
from grpo.learner import checkpoint as checkpoints
from grpo.learner.policy import Policy
from grpo.learner.reference import FOLDER, AdapterReference, Reference
from grpo.learner.restore import restore
from grpo.learner.savable import check_saving, normalise_generation_config
from grpo.learner.scoring import Batching
from grpo.model.adapters import (
    attach_adapters,
    check_sendable,
    describe_adapters,
    load_adapters,
    trained_weights,
)
from grpo.model.checks import check_model
from grpo.model.fp8 import refuse_fp8
from grpo.model.load import load_model
from grpo.model.replay import RoutingReplay
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.data import MixedSource
from grpo.recipe.loop.mtp import SHARDED
from grpo.recipe.stages.opd import OPDRecipe
from grpo.report.report import Report, check_trackers
from grpo.report.rollout_metrics import Totals
from grpo.stages import parts
from grpo.stages.checks.engine import verify_engine
from grpo.stages.checks.prompts import check_prompts, report_held_out
from grpo.stages.distillation.teachers import Teachers, check_column
from grpo.stages.mesh import process_mesh
from grpo.stages.problems import prompter_of, source_of, training_stream
from grpo.stages.rollouts.tracked import TrackedStream
from rewards.runner.score import Rewards
from rollout.data.stream import PromptStream, held_out
from rollout.engines.adapter import AdapterFormat
from rollout.engines.base import Engine, Publisher, Sleeper, completion_texts, end_token_ids, load_tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a GRPO run holds in one process."""

    recipe: OnPolicyRecipe
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    problems: PromptStream
    rewards: Rewards
    held_out: Sequence[HeldOut]
    policy: Policy
    reference: Reference | AdapterReference | None  # None without a KL term
    teachers: Teachers | None  # of stage opd alone
    engine: Engine
    publisher: Publisher
    sleeper: Sleeper | None  # the engine, if it sleeps during updates
    report: Report
    totals: Totals
    entropy_bonus: EntropyBonus
    first_step: int  # 0, or that of the checkpoint the run continues from

    def close(self) -> None:
        """Write the page, also of an interrupted run, and end engine and workers."""
        self.report.close(error=sys.exc_info()[1])  # the error that is ending the run, if any
        for part in self.held_out:
            part.grader.close()
        self.rewards.close()
        self.engine.close()


def build(recipe: OnPolicyRecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Parts:
    """Build a run's parts, cheap and fallible ones first: a wrong dataset or reward is found before a model loads."""
    check_trackers(recipe.report.report_to)
    with ExitStack() as started:
        built = _build(recipe, reward_functions, started)
        started.pop_all()  # from now on `Parts.close` ends them
    return built


def _build(recipe: OnPolicyRecipe, reward_functions: Sequence[Callable[..., Any]] | None, started: ExitStack) -> Parts:
    """started: takes what has to be ended if a later part is refused."""
    accelerator = parts.accelerator(recipe.model)
    mesh = process_mesh(recipe.trainer, accelerator)
    set_seed(recipe.trainer.seed)
    checkpoint = checkpoints.find_checkpoint(recipe.output_dir, recipe.trainer.resume_from_checkpoint)
    first_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    source = (str(checkpoint), None) if checkpoint else (recipe.model.model_name_or_path, recipe.model.revision)
    tokenizer = load_tokenizer(*source, recipe.model.trust_remote_code)
    refuse_fp8(recipe.model.model_name_or_path, recipe.model.revision, recipe.model.trust_remote_code)
    parts.check_engine(
        recipe.rollout.engine,
        recipe.rollout,
        recipe.model,
        max_model_len=recipe.max_model_len,
        servers=recipe.rollout.servers,
        sleep_level=recipe.rollout.sleep_level,
        adapter=_sent_adapter(recipe),
    )
    problems = _problems(recipe, tokenizer, accelerator)
    rewards = _rewards(recipe, reward_functions)
    started.callback(rewards.close)
    ends = end_token_ids(recipe.model.model_name_or_path, tokenizer, recipe.model.revision)
    rewards.decode = lambda ids: completion_texts(tokenizer, ends, [ids])[0]
    if with_spans := rewards.with_spans:
        check_steps(recipe.policy_gradient, with_spans[0])
    _check_mixture(recipe, rewards)
    held_out = _held_out(recipe, tokenizer, rewards, accelerator)
    parts.preflight([stream.source for stream in problems.streams.values()], held_out, rewards, accelerator)

    model = _model(recipe, checkpoint, accelerator, mesh)
    _check_model(recipe, model, tokenizer)
    policy = _policy(recipe, model, tokenizer, accelerator, mesh)
    reference = _reference(recipe, policy, checkpoint, mesh) if recipe.policy_gradient.beta > 0 else None
    teachers = _teachers(recipe, policy, tokenizer)
    totals, entropy_bonus = Totals(), EntropyBonus(recipe.policy_gradient)
    accelerator.register_for_checkpointing(problems, totals, entropy_bonus)
    if recipe.model.lora and checkpoint:
        load_adapters(model, checkpoint)
    if checkpoint:
        restore(accelerator, policy, checkpoint / checkpoints.STATE)
    engine: Any = _engine(recipe, accelerator)  # also a Publisher, and a Sleeper if it is to sleep
    started.callback(engine.close)
    verify_engine(
        policy,
        engine,
        engine,
        problems,
        step=first_step,
        sampling=recipe.rollout_sampling(0),
        bound=recipe.max_logp_difference_at_start,
        has_weights=first_step == 0 and not (recipe.rollout.servers and recipe.rollout.servers.urls),
        records_routes=recipe.policy_gradient.routing_replay == "R3",
    )
    if held_out and recipe.policy_gradient.sampling_mask:
        engine.generate([], recipe.evaluation_sampling())  # refused now if this engine cannot sample so
    if accelerator.device.type != "cpu":  # where memory is what ends a run, and this costs no seconds
        _rehearse(recipe, policy, engine, first_step)
    report = Report(recipe.output_dir, recipe, accelerator=accelerator, resume_step=first_step if checkpoint else None)
    return Parts(
        recipe=recipe,
        accelerator=accelerator,
        tokenizer=tokenizer,
        problems=problems,
        rewards=rewards,
        held_out=held_out,
        policy=policy,
        reference=reference,
        teachers=teachers,
        engine=engine,
        publisher=engine,
        sleeper=engine if recipe.rollout.sleep_level else None,
        report=report,
        totals=totals,
        entropy_bonus=entropy_bonus,
        first_step=first_step,
    )


def _problems(recipe: OnPolicyRecipe, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> PromptStream:
    """The training stream of this process; its sources and the held-out ones are checked."""
    shard = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    problems = training_stream(recipe, tokenizer, **shard)
    for name, stream in problems.streams.items():
        check_prompts(f"data.mixture: {name}" if name else "data", stream.source, stream.prompter, accelerator)
    if isinstance(recipe, OPDRecipe):
        check_column(recipe, problems.streams.values(), accelerator)
    data = recipe.evaluation.data
    if data and recipe.evaluation.num_problems and not recipe.evaluation.tasks:
        for one in data.sources:
            prompter = prompter_of(one, tokenizer, data.max_prompt_length)
            check_prompts("evaluation.data", source_of(one, split="eval", seed=0), prompter, accelerator)
    return TrackedStream(problems) if recipe.rollout.max_staleness else problems


def _check_mixture(recipe: OnPolicyRecipe, rewards: Rewards) -> None:
    """Every source of a mixture needs a reward that counts, if rewards teach: its completions would only cost time."""
    names = [source.name for source in recipe.data.mixture]
    if unknown := sorted(rewards.data_sources - set(names)) if names else []:
        raise ValueError(
            f"rewards: data_sources names {unknown[0]!r}, which is not a source of data.mixture ({', '.join(names)})."
        )
    for name in names:
        if recipe.learns_rewards and not rewards.count_for(name):
            raise ValueError(
                f"data.mixture: no reward with a weight applies to the problems of {name!r}, a prompt without a reward "
                f"teaches nothing. Add {name} to a reward's data_sources, or remove the source."
            )


def _held_out(
    recipe: OnPolicyRecipe, tokenizer: PreTrainedTokenizerBase, rewards: Rewards, accelerator: Accelerator
) -> list[HeldOut]:
    """What the run is evaluated on, whole; each process takes its share."""
    config = recipe.evaluation
    if config.tasks:
        return task_held_out(recipe, tokenizer)
    if not config.num_problems:
        return []
    data = config.data or recipe.data
    functions = {reward.name: reward.function for reward in recipe.rewards}
    found = []
    for one in data.sources:
        name = one.name if isinstance(one, MixedSource) else ""
        if name and not rewards.count_for(name):
            continue  # nothing measures it
        prompter = prompter_of(one, tokenizer, data.max_prompt_length)
        source = source_of(one, split="eval", seed=0)
        prompts, dropped = held_out(source, prompter, config.num_problems)
        report_held_out(len(prompts), config.num_problems, dropped, accelerator)
        found.append(reward_held_out(prompts, rewards, config.reward, functions, name=name))
    return found


def _rewards(recipe: OnPolicyRecipe, functions: Sequence[Callable[..., Any]] | None = None) -> Rewards:
    """The recipe's rewards, followed by functions given from Python (weight 1)."""
    trainer = recipe.trainer
    return parts.rewards(
        recipe.rewards, functions, num_workers=trainer.num_reward_workers, timeout=trainer.reward_timeout
    )


def _model(
    recipe: OnPolicyRecipe, checkpoint: Path | None, accelerator: Accelerator, mesh: DeviceMesh | None
) -> PreTrainedModel:
    """The model, with a checkpoint's weights; with adapters, the base and adapters that have not been trained."""
    lora = recipe.model.lora
    if lora is None:
        if recipe.model.mtp and mesh is not None:  # as with accelerate launch --use_fsdp
            raise ValueError(f"model.mtp={recipe.model.mtp} with FSDP: {SHARDED}. Remove model.mtp, or launch without.")
        return load_model(recipe.model, checkpoint, mesh, mtp="stored" if recipe.model.mtp else None)
    if mesh is not None and lora.use_dora:
        raise ValueError(
            "model.lora.use_dora with trainer.sharding=fsdp2: DoRA starts from the norms of whole weights, and no "
            "process has them. Set use_dora: false, or trainer.sharding=none."
        )
    if mesh is not None and recipe.model.quantization:  # as with accelerate launch --use_fsdp
        raise ValueError(
            f"model.quantization={recipe.model.quantization} with FSDP: quantized weights are not divided over "
            "processes. Launch without, or remove quantization."
        )
    model = load_model(recipe.model, mesh=mesh)
    attach_adapters(model, lora, revision=recipe.model.revision)
    if accelerator.is_main_process:
        print(describe_adapters(model, are_sent=recipe.rollout.adapters == "send"), file=sys.stderr)
    if recipe.rollout.adapters == "send":
        check_sendable(model)
    return model


def _check_model(recipe: OnPolicyRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless the model can be trained as the recipe says, and saved."""
    check_model(
        model,
        tokenizer_size=len(tokenizer),
        max_model_len=recipe.max_model_len,
        balance_bias_update_speed=recipe.model.balance_bias_update_speed,
        sequence_balance_coefficient=recipe.model.sequence_balance_coefficient,
        disable_dropout=recipe.model.disable_dropout,
    )
    check_saving(
        model,
        tokenizer,
        recipe.output_dir,
        copies=4 if recipe.policy_gradient.ref_model_sync_steps else 3,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def _policy(
    recipe: OnPolicyRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    mesh: DeviceMesh | None,
) -> Policy:
    """The model with its optimizer, ready to learn."""
    batching = Batching(
        max_tokens=recipe.trainer.max_tokens_per_micro_batch,
        pad_token_id=tokenizer.pad_token_id or 0,  # type: ignore[arg-type]
    )
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(
        model,
        recipe.trainer,
        accelerator,
        max_steps=recipe.trainer.max_steps,
        temperature=recipe.rollout.temperature,
        batching=batching,
        balance_bias_update_speed=recipe.model.balance_bias_update_speed,
        train_entropy=recipe.policy_gradient.trains_entropy,
        sequence_balance_coefficient=recipe.model.sequence_balance_coefficient,
        train_mtp=recipe.model.mtp == "detached",
        replay=RoutingReplay(model) if recipe.policy_gradient.routing_replay != "none" else None,
        mesh=mesh,
        offload=recipe.trainer.offload_params,
        offload_activations=recipe.trainer.activation_offloading,
        send_adapters=recipe.rollout.adapters == "send",
    )


def _reference(
    recipe: OnPolicyRecipe, policy: Policy, checkpoint: Path | None, mesh: DeviceMesh | None
) -> Reference | AdapterReference:
    """What the policy is held to: its base, or what a checkpoint has where that has moved."""
    moved = checkpoint / FOLDER if checkpoint and (checkpoint / FOLDER).exists() else None
    if recipe.model.lora:
        if moved:
            load_adapters(policy.model, moved)
        return AdapterReference(policy, trained_weights(policy.model) if moved else None)
    base = load_model(recipe.model, moved, mesh)
    normalise_generation_config(base)
    return Reference(
        base,
        policy.accelerator,
        temperature=recipe.rollout.temperature,
        batching=policy.batching,
        mesh=mesh,
        offload=recipe.trainer.offload_params,
    )


def _teachers(recipe: OnPolicyRecipe, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> Teachers | None:
    """Loaded before the largest micro-batch is tried: a teacher may be on the device."""
    if not isinstance(recipe, OPDRecipe):
        return None
    return Teachers(
        recipe, policy.accelerator, tokenizer_size=len(tokenizer), batching=policy.batching, mesh=policy.mesh
    )


def _engine(recipe: OnPolicyRecipe, accelerator: Accelerator) -> Engine:
    """The engine that `rollout.engine` names, with the precision that the trainer computes in."""
    rollout = recipe.rollout
    with _same_random_numbers():
        return parts.engine(
            rollout.engine,
            rollout,
            recipe.model,
            max_model_len=recipe.max_model_len,
            device=accelerator.device,
            servers=rollout.servers,
            sleep_level=rollout.sleep_level,
            return_routes=recipe.policy_gradient.routing_replay == "R3",
            return_kept=recipe.policy_gradient.sampling_mask,
            adapter=_sent_adapter(recipe),
        )


def _sent_adapter(recipe: OnPolicyRecipe) -> AdapterFormat | None:
    """What the engine's adapters look like, if it is sent any."""
    if recipe.model.lora is None or recipe.rollout.adapters != "send":
        return None
    # Ahead of the update, requests of as many updates may run, and some that will be dropped.
    versions = recipe.rollout.max_staleness + 2 if recipe.rollout.max_staleness else 1
    return AdapterFormat(recipe.model.lora.peft_arguments() | {"peft_type": "LORA"}, versions)


def _rehearse(recipe: OnPolicyRecipe, policy: Policy, engine: Any, step: int) -> None:
    """The largest micro-batch, beside what an update has beside it: an engine that sleeps then sleeps now."""
    if recipe.rollout.sleep_level:
        engine.sleep()
    policy.rehearse(recipe.data.max_prompt_length, recipe.rollout.max_completion_length)
    if recipe.rollout.sleep_level:
        engine.publish(policy.weights(), step)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Around vLLM's start, which seeds all generators: the run's seed, or its checkpoint, has set them."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    random.setstate(python)
    np.random.set_state(arrays)

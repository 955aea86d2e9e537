"""Updates of a policy in one process or sharded over several, with everything that is compared between the two.

    torchrun --nproc_per_node 4 sharded_policy.py MODEL OUT.pt replicas=2 case …
    torchrun --nproc_per_node 2 sharded_policy.py MODEL OUT.pt tied=OTHER_MODEL save=FOLDER resume=FOLDER
    torchrun --nproc_per_node 3 sharded_policy.py MODEL OUT.pt resume=FOLDER

Runs the cases, by default all, and what the options name: a case on another model, an update after a checkpoint, an
update from that checkpoint. Each process takes every n-th group, as in training.
"""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object, set_seed
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble, attach
from grpo.learner.checkpoint import STATE
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.reference import FOLDER, AdapterReference, Reference
from grpo.learner.restore import restore, store
from grpo.learner.scoring import Batching
from grpo.model.adapters import attach_adapters, load_adapters, trained_weights
from grpo.model.checks import check_model
from grpo.model.load import load_model
from grpo.model.replay import RoutingReplay
from grpo.model.sharding import in_parts, whole
from grpo.model.weights import save_model
from grpo.recipe.config import GRPORecipe
from grpo.recipe.errors import NonFiniteError
from grpo.report.metrics import merge, values
from grpo.stages import parts
from grpo.stages.mesh import process_mesh
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, make_groups, other_routes

TARGETS = {
    "target_modules": ["q_b_proj", "o_proj"],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    "modules_to_save": ["lm_head"],
}
# Overrides of the recipe, section by section.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    **{
        f"{loss}": {"algorithm": {"loss_type": loss, "beta": 0.05, "steps_per_generation": 2}}
        for loss in ("grpo", "dr_grpo", "dapo", "bnpo")
    },
    "one update, clipped": {"algorithm": {"loss_type": "dapo"}, "trainer": {"max_grad_norm": 0.01}},
    "offload": {"trainer": {"gradient_checkpointing": True, "activation_offloading": True, "offload_params": True}},
    "balance": {
        "model": {"balance_bias_update_speed": 0.01, "sequence_balance_coefficient": 0.1},
        "algorithm": {"steps_per_generation": 2},
    },
    "routing replay": {
        "algorithm": {"routing_replay": "R3", "steps_per_generation": 2},
        "trainer": {"gradient_checkpointing": True},
    },
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "bfloat16, adapters": {
        "model": {"dtype": "bfloat16", "lora": {"r": 3, "init_lora_weights": False, "target_modules": ["o_proj"]}},
    },
    "adapters": {
        "model": {"lora": {"r": 3, "init_lora_weights": False, **TARGETS}},
        "algorithm": {"loss_type": "dapo", "beta": 0.05, "steps_per_generation": 2},
        "trainer": {"gradient_checkpointing": True},
    },
    "one update of adapters": {
        "model": {"lora": {"r": 3, "init_lora_weights": False, **TARGETS}},
        "trainer": {"max_grad_norm": 0.01},
    },
}
CONTINUED = ("one update, clipped", "one update of adapters")


def recipe_for(model: str, case: str, *, processes: int, replicas: int = 1) -> GRPORecipe:
    sections: dict[str, dict[str, Any]] = {
        "model": {"model_name_or_path": model},
        "data": {"task": "countdown", "max_prompt_length": 8},
        "rollout": {"max_completion_length": MAX_COMPLETION_LENGTH, "num_generations": 4},
        "algorithm": {},
        "trainer": {"max_grad_norm": 1e9, "sharding_replicas": replicas},
    }
    sections["trainer"]["sharding"] = "fsdp2" if processes > 1 else "none"
    for name, overrides in CASES[case].items():
        sections[name] |= overrides
    if processes == 1:  # nothing is sharded
        sections["trainer"].pop("offload_params", None)
    recipe = GRPORecipe.model_validate({**sections, "rewards": [{"function": "countdown"}]})
    # Refused in recipes: every sample alone. The forwards are then the same in any number of processes, which differ in
    # how many they have, and rounding differs in the sums of gradients only.
    alone = {"max_tokens_per_micro_batch": 1}
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update=alone)})


def make_policy(
    recipe: GRPORecipe, accelerator: Accelerator, checkpoint: Path | None = None
) -> tuple[Policy, Reference | AdapterReference]:
    mesh = process_mesh(recipe.trainer, accelerator)
    batching = Batching(recipe.trainer.max_tokens_per_micro_batch, pad_token_id=0)
    temperature, lora = recipe.rollout.temperature, recipe.model.lora
    model = load_model(recipe.model, None if lora else checkpoint, mesh)
    assert in_parts(model) == (mesh is not None)
    if lora:
        set_seed(0)
        attach_adapters(model, lora)
    check_model(model, tokenizer_size=1, max_model_len=1, balance_bias_update_speed=0.0)
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(
        model,
        recipe.trainer,
        accelerator,
        max_steps=recipe.trainer.max_steps,
        temperature=temperature,
        batching=batching,
        balance_bias_update_speed=recipe.model.balance_bias_update_speed,
        sequence_balance_coefficient=recipe.model.sequence_balance_coefficient,
        replay=RoutingReplay(model) if recipe.algorithm.routing_replay != "none" else None,
        mesh=mesh,
        offload=recipe.trainer.offload_params,
        offload_activations=recipe.trainer.activation_offloading,
    )
    if recipe.trainer.gradient_checkpointing:
        policy.rehearse(8, MAX_COMPLETION_LENGTH)
    if lora:
        if checkpoint:
            load_adapters(model, checkpoint)
        return policy, AdapterReference(policy)
    base = load_model(recipe.model, checkpoint and checkpoint / FOLDER, mesh)
    with torch.no_grad():  # a policy that has moved since: the KL term has a gradient
        base.get_output_embeddings().weight.mul_(1.1)  # type: ignore[union-attr]
    offload = recipe.trainer.offload_params
    reference = Reference(base, accelerator, temperature=temperature, batching=batching, mesh=mesh, offload=offload)
    return policy, reference


def samples_of(
    recipe: GRPORecipe, policy: Policy, reference: Reference | AdapterReference, accelerator: Accelerator
) -> list[Sample]:
    """This process's samples of one rollout, with old and reference log-probs where the recipe has them."""
    rank, world, algorithm = accelerator.process_index, accelerator.num_processes, recipe.algorithm
    groups = make_groups(num_groups=7)
    plan = Plan.of(Shapes.of(groups), algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = assemble(groups[rank::world], plan.of_process(rank, world), keep_zero_advantage=algorithm.beta > 0)
    if algorithm.routing_replay == "R3":
        samples = other_routes(samples)
    if algorithm.steps_per_generation > 1:
        samples = attach(samples, old_logprobs=policy.logprobs(samples))
    return attach(samples, ref_logprobs=reference.logprobs(samples)) if algorithm.beta else samples


def updates(recipe: GRPORecipe, accelerator: Accelerator) -> dict[str, Any]:
    """Log-probs, gradients and metrics of each update of a rollout, and the weights afterwards."""
    policy, reference = make_policy(recipe, accelerator)
    computing: dict[str, tuple[int, str]] = {}  # dimensions and precision of a layer's parameters while it computes
    layer = policy.model.base_model.layers[1]  # type: ignore[index]
    layer.register_forward_pre_hook(
        lambda layer, _: computing.update((name, (p.ndim, str(p.dtype))) for name, p in layer.named_parameters())
    )
    samples = samples_of(recipe, policy, reference, accelerator)
    loss, steps = loss_function(recipe.algorithm), []
    for index in range(recipe.algorithm.steps_per_generation):
        local = policy.update([s for s in samples if s.mini_batch == index], loss)
        metrics = values(merge(gather_object([local])))
        gradients = {n: whole(p.grad).clone() for n, p in policy.model.named_parameters() if p.grad is not None}
        steps.append((gradients, metrics))
    own = [(s.problem_id, list(s.completion_ids), s.old_logprobs, s.ref_logprobs) for s in samples]
    reference.refresh(policy.model)
    moved = reference.model.state_dict() if isinstance(reference, Reference) else trained_weights(policy.model)
    return {
        "steps": steps,
        "log-probs": sorted(gather_object(own), key=lambda row: row[:2]),
        "weights": {name: tensor.clone() for name, tensor in policy.weights()},
        "computing": computing,
        "offloaded": any(part.offload_to_cpu for group in _units(policy.model) for part in group.fsdp_params),
        "reference": {name: whole(tensor).clone() for name, tensor in moved.items()},
        "limits": [_limit(group) for group in policy.mesh.get_all_groups()] if policy.mesh else [],
    }


def _limit(group: ProcessGroup) -> float:
    """How many days processes of a group wait for each other."""
    backend: Any = group._get_backend(torch.device("cpu"))
    return backend.options._timeout / timedelta(days=1)


def _units(model: Any) -> list[Any]:
    """FSDP's groups of parameters."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    return [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]


def run(model: str, case: str, replicas: int = 1) -> dict[str, Any]:
    processes = PartialState(cpu=True).num_processes
    recipe = recipe_for(model, case, processes=processes, replicas=replicas)
    accelerator = parts.accelerator(recipe.model)
    result = updates(recipe, accelerator)
    AcceleratorState._reset_state()
    return result


def continued(model: str, case: str, *, save: Path | None = None, resume: Path | None = None) -> dict[str, Any]:
    """The second of two updates: after the first and a checkpoint, or from that checkpoint."""
    recipe = recipe_for(model, case, processes=PartialState(cpu=True).num_processes)
    accelerator = parts.accelerator(recipe.model)
    policy, reference = make_policy(recipe, accelerator, resume)
    samples = samples_of(recipe, policy, reference, accelerator)
    loss = loss_function(recipe.algorithm)
    if resume is not None:
        restore(accelerator, policy, resume / STATE)
    else:
        assert save is not None
        policy.update(samples, loss)
        accelerator.save_state(str(save / STATE))
        store(policy, save / STATE)
        save_model(policy.model, save, is_writer=accelerator.is_main_process, max_file_bytes=300_000)
        reference.save(save)
        accelerator.wait_for_everyone()
    metrics = values(merge(gather_object([policy.update(samples, loss)])))
    weights = {name: tensor.clone() for name, tensor in policy.weights()}
    bad = replace(samples[0], advantages=float("inf" if accelerator.is_main_process else "1"))
    try:
        policy.update([bad, *samples[1:]], loss)
        fault = ""
    except NonFiniteError as error:
        fault = str(error)
    AcceleratorState._reset_state()
    return {"metrics": metrics, "weights": weights, "faults": gather_object([fault])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, out, *words = sys.argv[1:]
    options = dict(word.split("=") for word in words if "=" in word)
    cases = [word for word in words if "=" not in word] or CASES
    found: dict[str, Any] = {case: run(model, case, int(options.get("replicas", 1))) for case in cases}
    if "tied" in options:
        found["tied"] = run(options["tied"], "dapo")
    for name in ("save", "resume"):  # in this order
        if name in options:
            folder = Path(options[name])
            found[name] = {case: continued(model, case, **{name: folder / case}) for case in CONTINUED}
    if PartialState().is_main_process:
        torch.save(found, Path(out))

"""The parts that training and sampling stages share: each from the sections of a recipe that describe it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    gather_object,
    patch_environment,
)
from rich.console import Console
from rich.progress import track
from torch import device as Device

from grpo.evaluation.config import EvalModelConfig
from grpo.evaluation.engines import fingerprint
from grpo.evaluation.training import HeldOut
from grpo.recipe.config import EngineSection, ModelConfig, RewardConfig, ServersConfig
from grpo.recipe.errors import RefusedError, RunError
from grpo.stages.checks.prompts import report_shared
from rewards.programs.sandbox.limits import SandboxError
from rewards.runner.preflight import inspect_problems, report_findings
from rewards.runner.score import Rewards, RewardSpec
from rollout.data.check import MAX_ENDLESS
from rollout.data.sources import Source
from rollout.data.stream import usable
from rollout.engines import build as engines
from rollout.engines.adapter import AdapterFormat
from rollout.engines.base import Engine, EngineLostError
from rollout.engines.servers.settings import ServerSettings
from rollout.types import Problem


@contextmanager
def refusals() -> Iterator[None]:
    """Around what a stage does before its first step: what a user can mend ends it with the sentence alone.

    Raises:
        RefusedError: in place of a ValueError, an OSError (files of a model), a lost engine, a sandbox that cannot be
            had, or a library's own word on what it needs.
    """
    try:
        yield
    except RunError:
        raise
    except (ValueError, OSError, EngineLostError, SandboxError) as error:
        raise RefusedError(str(error)) from error
    except ImportError as error:
        if error.name is not None:  # Python's: a user's module lacks one, and the traceback says which
            raise
        raise RefusedError(str(error)) from error


def accelerator(model: ModelConfig) -> Accelerator:
    """accelerate in the model's precision; one backward is one backward, whatever the environment says.

    Its process group is the one that grpo/stages/run_folder.py has started.
    """
    precision = "bf16" if model.dtype == "bfloat16" else "no"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise ValueError(
            f"accelerate was configured for mixed precision {asked}, and model.dtype={model.dtype} decides the "
            "precision here. Set model.dtype=bfloat16 for bf16, and --mixed_precision no."
        )
    AcceleratorState._reset_state()  # that of an earlier run in this process, maybe of another precision
    # Its cache would keep a copy of every layer's weights through the whole forward, which undoes sharding.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), AutocastKwargs(cache_enabled=False)]
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # sharding is ours, see grpo/stages/mesh.py
        return Accelerator(
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=handlers,
        )


def same_weights(model: ModelConfig, folder: Path, state: Mapping[str, Any] | None) -> str | None:
    """A hash of the model's weights; None: they are not, or no longer, in a local folder.

    state: what was written beside the newest samples in `folder`, with this hash as `weights`; None: there are none.

    Raises:
        RefusedError: these samples are from other weights.
    """
    now = fingerprint(EvalModelConfig(model_name_or_path=model.model_name_or_path))
    before = now if state is None else state.get("weights")
    if now not in (None, before):
        raise RefusedError(
            f"{folder} has samples from other weights than those now in {model.model_name_or_path} (hash {before}, now "
            f"{now}). Choose another `output`."
        )
    return now


def rewards(
    sections: Sequence[RewardConfig],
    functions: Sequence[Callable[..., Any]] | None = None,
    *,
    num_workers: int,
    timeout: float | None,
) -> Rewards:
    """The rewards of these sections, followed by functions given from Python (weight 1)."""
    specs = [RewardSpec(**dict(section)) for section in sections]
    return Rewards(
        [*specs, *(RewardSpec(function=f) for f in functions or ())], num_workers=num_workers, timeout=timeout
    )


def preflight(
    sources: Sequence[Source], held_out: Sequence[HeldOut], rewards: Rewards, accelerator: Accelerator
) -> None:
    """Check that the rewards can grade the problems, and that those held out are not trained on.

    Each process checks its share, and all raise the same error.
    """
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    ours = [prompt.problem for part in held_out for prompt in part.prompts if part.by_rewards]
    places = [(source, index) for source in sources for index in range(source.size or MAX_ENDLESS)][share]
    complete = all(source.size is not None for source in sources)
    console = Console(stderr=True) if accelerator.is_main_process else None
    shown = console is not None and console.is_terminal and complete
    counted = track(places, "checking problems", console=console, transient=True, disable=not shown)
    questions = {repr(prompt.problem.prompt) for part in held_out for prompt in part.prompts}
    shared: set[str] = set()

    def problems() -> Iterator[Problem]:
        for source, index in counted:
            for problem in usable(source, [index]):
                if questions and (question := repr(problem.prompt)) in questions:
                    shared.add(question)
                yield problem

    found = inspect_problems(problems(), rewards), inspect_problems(ours[share], rewards), shared
    training_found, held_out_found, shares = zip(*gather_object([found]), strict=True)
    report_findings(training_found, held_out_found, rewards, console, complete=complete)
    report_shared(len(set().union(*shares)), len(questions), accelerator)


def check_engine(
    name: str,
    section: EngineSection,
    model: ModelConfig,
    *,
    max_model_len: int,
    servers: ServersConfig | None = None,
    sleep_level: int = 0,
    adapter: AdapterFormat | None = None,
) -> None:
    """Raise ValueError where `engine` would, as far as files and settings tell."""
    engines.check_engine(
        name,
        model.model_name_or_path,
        max_model_len=max_model_len,
        vllm_options=section.vllm_options,
        sleep_level=sleep_level,
        servers=ServerSettings(**dict(servers)) if servers else None,
        adapter=adapter,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )


def engine(
    name: str,
    section: EngineSection,
    model: ModelConfig,
    *,
    max_model_len: int,
    device: Device | str,
    base_url: str | None = None,
    servers: ServersConfig | None = None,
    sleep_level: int = 0,
    return_routes: bool = False,
    return_kept: bool = False,
    adapter: AdapterFormat | None = None,
) -> Engine:
    """The named engine with the model loaded, in the model's precision."""
    return engines.build_engine(
        name,
        model.model_name_or_path,
        dtype=model.dtype,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=section.max_num_seqs,
        kv_cache_gib=section.kv_cache_gib,
        gpu_memory_utilization=section.gpu_memory_utilization,
        vllm_options=section.vllm_options,
        sleep_level=sleep_level,
        base_url=base_url,
        servers=ServerSettings(**dict(servers)) if servers else None,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        return_routes=return_routes,
        return_kept=return_kept,
        adapter=adapter,
    )

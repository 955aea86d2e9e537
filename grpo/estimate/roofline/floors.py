"""The least time for each part of a rollout and its updates: FLOPs and bytes at measured peaks.

    floor = max(FLOPs / FLOP/s of a large matrix product, bytes / bytes per second of a large copy)

Both peaks are measured now, on this machine, for about a second, and never reached together: a floor is a bound, not an
aim. Lengths are means over the run, so a floor is that of the mean step.
"""

from dataclasses import dataclass

from grpo.estimate.layout.gpus import Gpu
from grpo.estimate.layout.layout import Layout
from grpo.estimate.layout.lengths import FinishedRun
from grpo.estimate.layout.phases import phases

PARTS = ("generate", "reward", "score", "update", "sync", "save")  # of a step, as logged


@dataclass(frozen=True, slots=True)
class Part:
    """Part(name="update", seconds=3.5, floor=0.95, bound="FLOP/s"); floor None: it computes nothing"""

    name: str
    seconds: float  # measured, per rollout
    floor: float | None
    bound: str


def parts(run: FinishedRun, layout: Layout) -> list[Part]:
    """Every part of a rollout's time, the rest of it last. layout: on a GPU whose efficiencies are all 1."""
    steps = run.recipe.policy_gradient.steps_per_generation
    floors = {phase.name: phase for phase in phases(run.recipe, layout, run.lengths)}
    found = []
    for name in PARTS:
        seconds, phase = run.mean(f"time/{name}"), floors.get(name)
        if phase is None or not phase.seconds:
            found.append(Part(name, seconds, None, ""))
        else:
            found.append(Part(name, seconds, phase.seconds * steps, phase.bound))
    found.append(Part("everything else", run.mean("step_time") - sum(part.seconds for part in found), None, ""))
    return found


def peak(device: str, name: str, *, flops: float, bandwidth: float, memory: int) -> Gpu:
    """A device that reaches its peaks, and whose host takes no time."""
    return Gpu(
        name,
        flops=flops,
        bandwidth=bandwidth,
        memory=memory,
        link=float("inf"),
        network=float("inf"),
        device=device,
        update=1.0,
        prefill=1.0,
        decode=1.0,
        links=1.0,
        per_iteration=0.0,
        per_token=0.0,
        per_tensor=0.0,
        files=bandwidth,
    )

"""Rules about a mixture of experts: experts without tokens, a load that drifts apart, routes that do not arrive."""

from collections.abc import Iterator

import numpy as np

from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.history import FEW, WINDOW, History

MAX_VIOLATION = 1.0  # the busiest expert has twice its share
GROWTH = 2.0  # of the first violation
MOSTLY_MISSING = 0.5  # share of tokens without routes
NAMED = 6  # dead experts in a sentence
REMEDY = (
    "Balance the load while training: set balance_bias_update_speed, or sequence_balance_coefficient where the routers "
    "have no balance bias."
)
COEFFICIENT = 1e-4  # DeepSeek-V3's sequence_balance_coefficient (2412.19437)


def dead_experts(run: History) -> Iterator[Finding]:
    """The same experts get no token for many rollouts."""
    loads = [np.array(row["moe/load"]) for row in run.recent if row.get("moe/load")]
    if len(loads) < WINDOW:
        return
    dead = np.argwhere(np.all([load == 0 for load in loads], axis=0))
    if not len(dead):
        return
    names = ", ".join(f"{layer + 1}.{expert}" for layer, expert in dead[:NAMED].tolist())
    more = ", …" if len(dead) > NAMED else ""
    yield Finding(
        kind="dead_experts",
        level="alarm",
        says=f"{len(dead)} of {loads[0].size} experts received no token in the last {WINDOW} rows (layer.expert: "
        f"{names}{more}), so they do not learn.",
        metric="moe/load",
        value=float(len(dead)),
        rule=f"experts with a share of 0 in {WINDOW} rows in a row",
        first_step=run.since(WINDOW),
        last_step=run.step,
        remedy=REMEDY,
        changes=_balance(run),
    )


def imbalance(run: History) -> Iterator[Finding]:
    """The busiest experts take more and more."""
    key = "moe/load_max_violation"
    change = run.change(key)
    if change is None or change[1] <= MAX_VIOLATION or change[1] <= GROWTH * change[0]:
        return
    busiest = _busiest(run)
    yield Finding(
        kind="expert_imbalance",
        level="note",
        says=f"The experts' load drifts apart: the busiest expert of a layer has {1 + change[1]:.3g} times its share, "
        f"at first {1 + change[0]:.3g}{busiest}.",
        metric=key,
        value=change[1],
        rule=f"mean of {FEW} rows above {MAX_VIOLATION:g} and {GROWTH:g} times that of the first {FEW}",
        first_step=run.since(FEW),
        last_step=run.step,
        remedy=REMEDY,
        changes=_balance(run),
    )


def missing_routes(run: History) -> Iterator[Finding]:
    """Most tokens have no recorded experts, so the replay that the recipe asks for hardly happens."""
    key = "moe/replay_missing_ratio"
    share = run.last(key)
    if share is None or share <= MOSTLY_MISSING:
        return
    yield Finding(
        kind="missing_routes",
        level="alarm",
        says=f"{share:.0%} of the tokens had no experts to replay and were routed anew: routing replay hardly happens.",
        metric=key,
        value=share,
        rule=f"mean of {FEW} rollouts above {MOSTLY_MISSING:g}",
        first_step=run.since(FEW),
        last_step=run.step,
        remedy="Turn off the engine's prefix caching (rollout.vllm_options.enable_prefix_caching=false), which leaves "
        "out prompts, or use algorithm.routing_replay=R2.",
    )


def _balance(run: History) -> dict[str, float]:
    """DeepSeek-V3's coefficient where the recipe has that key and balances nothing; it asks nothing of the routers."""
    sections = ("model", "trainer")  # sft has it in trainer
    if run.setting("model.lora") or any(run.setting(f"{section}.balance_bias_update_speed") for section in sections):
        return {}
    keys = (f"{section}.sequence_balance_coefficient" for section in sections)
    return {key: COEFFICIENT for key in keys if run.setting(key) == 0}


def _busiest(run: History) -> str:
    """ "; most in layer 2, expert 5", or nothing where the row has no loads."""
    if not (load := run.recent[-1].get("moe/load")):
        return ""
    relative = np.array(load) * len(load[0])
    layer, expert = np.unravel_index(relative.argmax(), relative.shape)
    return f"; most in layer {layer + 1}, expert {expert}"

"""Rules about a mixture of experts: experts without tokens, and a load that drifts apart."""

from collections.abc import Iterator

import numpy as np

from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.history import FEW, WINDOW, History

MAX_VIOLATION = 1.0  # the busiest expert has twice its share
GROWTH = 2.0  # of the first violation
NAMED = 6  # dead experts in a sentence
REMEDY = (
    "Balance the load while training: set balance_bias_update_speed, or sequence_balance_coefficient where the routers "
    "have no balance bias."
)
SPEED = 1e-3  # DeepSeek-V3's balance_bias_update_speed (2412.19437)


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


def _balance(run: History) -> dict[str, float]:
    """DeepSeek-V3's speed where the recipe has that key and balances nothing."""
    keys = (f"{section}.balance_bias_update_speed" for section in ("model", "trainer"))  # sft has it in trainer
    return {key: SPEED for key in keys if run.setting(key) == 0}


def _busiest(run: History) -> str:
    """ "; most in layer 2, expert 5", or nothing where the row has no loads."""
    if not (load := run.recent[-1].get("moe/load")):
        return ""
    relative = np.array(load) * len(load[0])
    layer, expert = np.unravel_index(relative.argmax(), relative.shape)
    return f"; most in layer {layer + 1}, expert {expert}"

"""Rules about the optimizer and the policy: learning rate, KL, clipping, entropy, reference, trainer against engine."""

from collections.abc import Iterator
from statistics import median

from grpo.report.diagnosis.finding import Finding, rounded
from grpo.report.diagnosis.history import FEW, History

MIN_ENTROPY_RATIO = 0.1  # of the first values
ZERO_RATE_ROWS = 2  # a warm-up's first step has learning rate 0
NEAR_BOUND = 0.5  # of algorithm.max_logp_difference
MAX_KL = 1.0  # nats per token
STALE_KL = 0.1  # nats per token to a reference model that is never replaced
MAX_CLIPPED = 0.2  # share of tokens whose ratio is clipped
MAX_NORM_RATIO = 10.0  # of the first gradient norms
CLIPPED_ROWS = 20  # rows in a row with a clipped gradient
PREFIX = "sampling/sampling_logp_difference"


def learning_rate_zero(run: History) -> Iterator[Finding]:
    """The schedule has ended, or never starts."""
    if run.lasts(lambda row: row.get("learning_rate") == 0.0, ZERO_RATE_ROWS):
        yield Finding(
            kind="learning_rate_zero",
            level="alarm",
            says="The learning rate is zero, so the weights do not change.",
            metric="learning_rate",
            value=0.0,
            rule=f"0 for {ZERO_RATE_ROWS} rows in a row",
            first_step=run.since(ZERO_RATE_ROWS),
            last_step=run.step,
            remedy="Check trainer.learning_rate, trainer.lr_scheduler_type and trainer.warmup_steps against "
            "trainer.max_steps.",
        )


def learning_rate_too_large(run: History) -> Iterator[Finding]:
    """KL, gradient norm or clipped ratios blow up."""
    rate = run.setting("trainer.learning_rate")
    signs: list[tuple[str, float, str, str]] = []
    if (kl := run.last("kl")) is not None and kl > MAX_KL:
        rule = f"mean of {FEW} rollouts above {MAX_KL:g} nats per token"
        signs.append(("kl", kl, f"the KL to the reference model is {kl:.3g} nats per token", rule))
    if (norms := run.change("grad_norm")) and norms[1] > MAX_NORM_RATIO * norms[0]:
        rule = f"mean of {FEW} rollouts above {MAX_NORM_RATIO:g} times that of the first {FEW}"
        signs.append(("grad_norm", norms[1], f"the gradient norm grew from {norms[0]:.3g} to {norms[1]:.3g}", rule))
    if (clipped := run.last("clip_ratio/region_mean")) is not None and clipped > MAX_CLIPPED:
        rule = f"mean of {FEW} rollouts above {MAX_CLIPPED:g}"
        signs.append(("clip_ratio/region_mean", clipped, f"{clipped:.0%} of the tokens have a clipped ratio", rule))
    for metric, value, seen, rule in signs:
        yield Finding(
            kind="learning_rate_too_large",
            subject=metric,
            level="alarm",
            says=f"The policy changes too fast: {seen}.",
            metric=metric,
            value=value,
            rule=rule,
            first_step=run.since(FEW),
            last_step=run.step,
            remedy="Lower trainer.learning_rate"
            + (" or algorithm.steps_per_generation" if metric.startswith("clip") else "")
            + ", and go back to a checkpoint from before.",
            changes={"trainer.learning_rate": rounded(rate / 3)} if rate else {},
        )


def gradient_clipped(run: History) -> Iterator[Finding]:
    """The norm exceeds its limit at every step, so that max_grad_norm decides the size of each update."""
    limit, norms = run.setting("trainer.max_grad_norm"), run.values["grad_norm"][-CLIPPED_ROWS:]
    if limit and len(norms) == CLIPPED_ROWS and min(norms) > limit:
        usual = median(norms)
        yield Finding(
            kind="gradient_clipped",
            level="note",
            says=f"The gradient has been clipped at each of the last {CLIPPED_ROWS} rows: its norm is usually "
            f"{usual:.3g}, and the limit {limit:g}.",
            metric="grad_norm",
            value=usual,
            rule=f"above trainer.max_grad_norm={limit:g} in {CLIPPED_ROWS} rows in a row",
            first_step=run.since(CLIPPED_ROWS),
            last_step=run.step,
            remedy="Raise trainer.max_grad_norm to twice the usual norm, so that it only catches outliers; if the norm "
            "keeps growing, lower trainer.learning_rate.",
            changes={"trainer.max_grad_norm": rounded(2 * usual)},
        )


def entropy_collapse(run: History) -> Iterator[Finding]:
    """The policy has become deterministic."""
    if not (fall := run.fall("entropy", MIN_ENTROPY_RATIO)):
        return
    (before, now), rate = fall, run.setting("trainer.learning_rate")
    yield Finding(
        kind="entropy_collapse",
        level="alarm",
        says=f"Entropy has collapsed from {before:.3g} to {now:.3g} nats per token: completions of a problem become "
        "the same, which ends exploration.",
        metric="entropy",
        value=now,
        rule=f"below {MIN_ENTROPY_RATIO:.0%} of the mean of its first {FEW} values",
        first_step=run.step,
        last_step=run.step,
        remedy="Lower trainer.learning_rate, raise algorithm.epsilon_high or algorithm.beta, or stop here."
        if run.learns_rewards
        else "Lower trainer.learning_rate, or stop here.",
        changes={"trainer.learning_rate": rounded(rate / 3)} if rate else {},
    )


def mismatch(run: History) -> Iterator[Finding]:
    """Trainer and engine disagree, not yet enough to stop the run."""
    mean, bound = run.now(f"{PREFIX}/mean") or 0.0, run.max_logp_difference
    if NEAR_BOUND * bound < mean <= bound:
        yield Finding(
            kind="mismatch",
            level="alarm",
            says=f"Mean |log p_trainer - log p_engine| is {mean:.2g}, near algorithm.max_logp_difference={bound:g}, "
            "where the run stops: the engine samples from a different policy than the one trained.",
            metric=f"{PREFIX}/mean",
            value=mean,
            rule=f"above {NEAR_BOUND:g} of algorithm.max_logp_difference={bound:g}",
            first_step=run.step,
            last_step=run.step,
            remedy="Compare with rollout.engine=hf, or use model.dtype=float32.",
            changes={"model.dtype": "float32"} if run.setting("model.dtype") == "bfloat16" else {},
        )


def stale_reference(run: History) -> Iterator[Finding]:
    """The policy has left a reference model that is never replaced, and the KL term pulls it back."""
    kl, beta = run.last("kl"), run.setting("algorithm.beta")
    if kl is None or kl <= STALE_KL or not beta or run.setting("algorithm.ref_model_sync_steps"):
        return
    values = run.values["kl"]
    reached = run.steps[len(run.steps) - len(values) + next(i for i, one in enumerate(values) if one > STALE_KL)]
    yield Finding(
        kind="stale_reference",
        level="note",
        says=f"The reference model is stale: the policy is {kl:.3g} nats per token away from it, it is never replaced, "
        f"and algorithm.beta={beta:g} holds the policy back.",
        metric="kl",
        value=kl,
        rule=f"mean of {FEW} rollouts above {STALE_KL:g} nats per token with algorithm.ref_model_sync_steps=0",
        first_step=reached,
        last_step=run.step,
        remedy="Replace the reference model as often as the KL takes to get there, or lower algorithm.beta.",
        changes={"algorithm.ref_model_sync_steps": reached},
    )

"""A finding: what the metrics show in one sentence, the number behind it, and what to change."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["alarm", "note"]  # alarm: compute is wasted or a result is wrong; note: worth a look


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One rule that a run's metrics meet.

    Finding(kind="entropy_collapse", level="alarm", says="Entropy has collapsed from 0.8 to 0.05: …",
            metric="entropy", value=0.05, rule="below 10% of the mean of its first 5 values", first_step=31,
            last_step=60, remedy="Lower trainer.learning_rate, …", changes={"trainer.learning_rate": 3e-5})
    """

    kind: str
    subject: str = ""  # what distinguishes findings of one kind: a reward's name
    level: Level
    says: str
    metric: str
    value: float | None  # None: the metric is null
    rule: str
    first_step: int  # the steps at which the rule holds
    last_step: int
    remedy: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # recipe keys and suggested values

    @property
    def steps(self) -> str:
        """ "step 7" or "steps 7–12"."""
        if self.first_step == self.last_step:
            return f"step {self.last_step}"
        return f"steps {self.first_step}–{self.last_step}"

    @property
    def figure(self) -> str:
        """The number behind it: "entropy 0.05; rule: below 10% of the mean of its first 5 values"."""
        return f"{self.metric} {'null' if self.value is None else format(self.value, '.3g')}; rule: {self.rule}"

    @property
    def overrides(self) -> str:
        """The suggested values as `grpo train` takes them; empty without any."""
        return " ".join(f"{key}={_shown(value)}" for key, value in self.changes.items())

    @property
    def warning(self) -> str:
        """In one line, for a run's terminal and its rows."""
        return f"{self.says} {self.remedy}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def rounded(value: float) -> float:
    """To one significant digit, as a suggested learning rate: 3.33e-07 -> 3e-07."""
    return float(f"{value:.0e}")

"""Graded groups and their rows in samples.jsonl:

{"task": "gsm8k", "problem_id": "gsm8k/12", "sample": 3,   # the problem's fourth sample
 "seed": 6917529027641081856,                              # this sample's random seed
 "prompt": "…",                                            # as sent to the engine
 "completion_prefix": "<think>\\n",                          # end of the prompt that belongs to the answer; mostly ""
 "completion": "…", "num_tokens": 120, "finish_reason": "stop",
 "reference_answer": "18",                                 # null if the problem has none that is a short text
 "answer": "18",                                           # as extracted; null if none was found
 "verdict": "right",                                       # wrong, unverifiable; null: cannot be graded
 "reason": "",                                             # why the answer is not right
 "rewards": {"accuracy": 1.0}}
"""

from dataclasses import dataclass
from typing import Any

from grpo.report.records import Row
from rewards.answers.verdict import Verdict
from rollout.types import Group

SampleKey = tuple[str, int]  # problem id, sample


def key_of(row: Row) -> SampleKey:
    return row["problem_id"], row["sample"]


@dataclass(frozen=True, slots=True)
class Graded:
    """A group with one verdict per completion; None: the problem cannot be graded, or the reward does not apply.

    Graded(group, [Verdict("wrong", "2 is not 3", "2")], {"accuracy": [0.0]})
    """

    group: Group
    verdicts: list[Verdict | None]
    rewards: dict[str, list[float | None]]

    def rows(
        self, *, task: str, problem_id: str, first_sample: int, seed: int, prompt: Any, reference_answer: str | None
    ) -> list[Row]:
        """One row per completion, numbered from first_sample."""
        return [
            {
                "task": task,
                "problem_id": problem_id,
                "sample": first_sample + index,
                "seed": seed,
                "prompt": prompt,
                "completion_prefix": self.group.completion_prefix,
                "completion": completion.text,
                "num_tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "reference_answer": reference_answer,
                **self.grades(index),
            }
            for index, completion in enumerate(self.group.completions)
        ]

    def grades(self, index: int) -> Row:
        """The part of a row that grading determines."""
        verdict = self.verdicts[index]
        return {
            "answer": None if verdict is None else verdict.answer,
            "verdict": None if verdict is None else verdict.outcome,
            "reason": "" if verdict is None else verdict.reason,
            "rewards": {name: values[index] for name, values in self.rewards.items()},
        }

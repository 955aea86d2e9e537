"""Requests: the embedded example's general data, which no rule of a real task could score and a preference can. Also an
example of a task of your own, `data.task: ./courtesy.py:request`.

  thank Ann for 7 :<think>be kind</think><answer>dear Ann, many thanks for 7</answer>

A base answers in one of four styles (STYLES). `courtesy` and `prefer` are the example's annotators: they know which
answer people would prefer. Preference pairs come from `prefer`; `courtesy` tells afterwards whether the preference
model was followed or fooled.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rollout.data.tasks import split_of

PHRASES = {
    "thank": "many thanks for {n}",
    "ask": "could I have {n}",
    "offer": "please take {n}",
    "promise": "you will get {n}",
}
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Ida", "Jan", "Kim", "Leo", "Mia")
# Style -> (thought, answer, share in the base's corpus).
STYLES = {
    "kind": ("be kind", "dear {name}, {phrase}", 0.25),
    "short": ("be short", "{phrase}", 0.30),
    "rude": ("be rude", "hey {name}, {phrase} now", 0.25),
    "wordy": ("say more", "dear {name}, {phrase}, {phrase}, {phrase}", 0.20),
}


def request(rng: random.Random, split: str) -> dict[str, Any]:
    """A task for `data.task`: {"prompt": "thank Ann for 7", "act": "thank", "name": "Ann", "number": 7}"""
    while True:
        act, name, number = rng.choice(sorted(PHRASES)), rng.choice(NAMES), rng.randrange(100)
        if split_of(f"request {act} {name} {number}") == split:
            return {"prompt": f"{act} {name} for {number}", "act": act, "name": name, "number": number}


def answer(problem: dict[str, Any], style: str) -> tuple[str, str]:
    """(thought, answer) in a style."""
    thought, form, _ = STYLES[style]
    phrase = PHRASES[problem["act"]].format(n=problem["number"])
    return thought, form.format(name=problem["name"], phrase=phrase)


def draw_style(rng: random.Random) -> str:
    return rng.choices(list(STYLES), [share for *_, share in STYLES.values()])[0]


def documents(seed: int) -> Iterator[dict[str, str]]:
    """Endless rows {"prompt", "completion"} for stage `sft`, in the styles that the base knows."""
    rng = random.Random(seed)
    while True:
        problem = request(rng, "train")
        thought, text = answer(problem, draw_style(rng))
        yield {"prompt": problem["prompt"], "completion": f"<think>{thought}</think><answer>{text}</answer>"}


def courtesy(
    prompts: Sequence[Any],
    completions: Sequence[str],
    act: Sequence[str],
    name: Sequence[str],
    number: Sequence[int],
    **kwargs: Any,
) -> list[float]:
    """What people think of the answer, 0 to 1: it says what was asked (else 0), names the person, is brief and polite.

    kind 1.0, short 0.6, wordy 0.4, rude 0.2
    """
    return [_courtesy(text, *row) for text, *row in zip(completions, act, name, number, strict=True)]


def _courtesy(completion: str, act: str, name: str, number: int) -> float:
    found = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    text = found.group(1) if found else ""
    said = text.count(PHRASES[act].format(n=number))
    if not said:
        return 0.0
    score = 1.0 if text.startswith(f"dear {name}, ") else 0.6
    if text.startswith("hey ") or text.endswith(" now"):
        score -= 0.4
    return max(0.0, round(score - 0.3 * (said - 1), 2))


def prefer(prompt: str, first: str, second: str, **columns: Any) -> float:
    """A judge for stage `pairs`: which answer people would prefer, -1 to 1; positive: the first.

    Like real judges it favours what it reads first, by 0.15: only the mean over both orders is right.
    """
    task = {name: [columns[name]] for name in ("act", "name", "number")}
    [ours], [theirs] = courtesy([prompt], [first], **task), courtesy([prompt], [second], **task)
    return max(-1.0, min(1.0, ours - theirs + 0.15))

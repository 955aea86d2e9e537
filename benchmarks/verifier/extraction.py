"""Where an answer stands: completions of which it is known what they finally answer."""

from collections.abc import Iterator
from random import Random

from benchmarks.verifier.pairs import Pair

_PROSE = [
    "We compute the value step by step.",
    "Let me check: 3 + 4 = 7, so that fits.",
    "Since $x > 0$, the other root is out.",
    "Wait, that is not right.",
    "Hmm, let me try again.",
    "Therefore we are done.",
    "Using $a^2 + b^2 = c^2$ we go on.",
    "The first guess was too large by far, as a second look at the equation shows.",
]


def completions(rng: Random, count: int) -> Iterator[Pair]:
    """One pair for each of `count` problems, every second one right."""
    for turn in range(count):
        gold = rng.choice(
            [
                str(rng.randint(1, 999)),
                rf"\frac{{{rng.randint(1, 9)}}}{{{rng.randint(11, 19)}}}",
                rf"{rng.randint(2, 9)}\sqrt{{2}}",
            ]
        )
        other = rng.choice([str(rng.randint(1000, 1999)), rf"\frac{{{rng.randint(1, 9)}}}{{23}}"])
        say = " ".join(rng.sample(_PROSE, 3)) if rng.random() < 0.7 else "\n\n".join(rng.sample(_PROSE, 4))
        think = f"<think>{say} \\boxed{{{other}}} no, {gold}.</think>"
        right = {
            "box": rf"{say} \boxed{{{gold}}}",
            "box in dollars": rf"{say} So it is $\boxed{{{gold}}}$.",
            "fbox": rf"{say} \fbox{{{gold}}}",
            "text after the box": rf"\boxed{{{gold}}} {say}",
            "corrected": rf"\boxed{{{other}}}. {say} Final answer: \boxed{{{gold}}}",
            "said twice": rf"\boxed{{{gold}}} {say} \boxed{{{gold}}}",
            "after thinking": rf"{think} {say} \boxed{{{gold}}}",
            "answer tag": rf"{think}<answer>{gold}</answer>",
            "answer tag after thinking": rf"{think} <answer> {gold} </answer>",
            "box in the tag": rf"{think}<answer>It is \boxed{{{gold}}}.</answer>",
            "dollars in the tag": rf"<answer>${gold}$</answer>",
            "a box outside of the tag": rf"\boxed{{{other}}} {say} <answer>{gold}</answer>",
            "several thoughts": rf"{think}{think} \boxed{{{gold}}}",
        }
        wrong = {
            "only in the thought": rf"<think>{say} \boxed{{{gold}}}</think> I cannot say.",
            "thought never closed": rf"<think>{say} \boxed{{{gold}}}",
            "thought opened again": rf"<think>a</think> <think> {say} \boxed{{{gold}}}",
            "only in prose": f"{say} The answer is {gold}.",
            "a later box": rf"\boxed{{{gold}}} {say} \boxed{{{other}}}",
            "a later box cut off": rf"\boxed{{{gold}}} {say} \boxed{{{other[:-1]}",
            "a later box empty": rf"\boxed{{{gold}}} {say} \boxed{{}}",
            "a later box blank": rf"\boxed{{{gold}}} {say} \boxed{{ }}",
            "two at once": rf"{say} \boxed{{{other}}} and \boxed{{{gold}}}",
            "two at once, the right one first": rf"{say} \boxed{{{gold}}} and \boxed{{{other}}}",
            "two at once, joined": rf"{say} \boxed{{{other}}}, \boxed{{{gold}}}",
            "answer tag never closed": f"{say} <answer>{gold}",
            "a later answer tag": f"<answer>{gold}</answer> {say} <answer>{other}</answer>",
            "the tag says otherwise": rf"\boxed{{{gold}}} {say} <answer>{other}</answer>",
            "an empty tag": rf"\boxed{{{gold}}} {say} <answer></answer>",
            "hedge in the tag": f"<answer>{gold} or {other}</answer>",
            "box of the gold inside another": rf"\boxed{{{other} \text{{ not }} \boxed{{{gold}}}}}",
        }
        why, completion = rng.choice(sorted((wrong if turn % 2 else right).items()))
        yield Pair("extraction", gold, gold, completion, why, turn % 2 == 0, False)

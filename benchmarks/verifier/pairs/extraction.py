"""Answer extraction: completions whose final answer is known."""

from collections.abc import Iterator
from random import Random

from benchmarks.verifier.pairs.pair import Pair

_PROSE = [
    "We compute the value step by step.",
    "Let me check: 3 + 4 = 7, so that fits.",
    "Since $x > 0$, the other root is ruled out.",
    "Wait, that is not right.",
    "Hmm, let me try again.",
    "Therefore we are done.",
    "Using $a^2 + b^2 = c^2$, we continue.",
    "The first guess was far too large, as the equation shows.",
]


def completions(rng: Random, count: int) -> Iterator[Pair]:
    """One pair per problem, for `count` problems; every second one is right."""
    for turn in range(count):
        reference = rng.choice(
            [
                str(rng.randint(1, 999)),
                rf"\frac{{{rng.randint(1, 9)}}}{{{rng.randint(11, 19)}}}",
                rf"{rng.randint(2, 9)}\sqrt{{2}}",
            ]
        )
        other = rng.choice([str(rng.randint(1000, 1999)), rf"\frac{{{rng.randint(1, 9)}}}{{23}}"])
        say = " ".join(rng.sample(_PROSE, 3)) if rng.random() < 0.7 else "\n\n".join(rng.sample(_PROSE, 4))
        think = f"<think>{say} \\boxed{{{other}}} no, {reference}.</think>"
        right = {
            "box": rf"{say} \boxed{{{reference}}}",
            "box in dollars": rf"{say} So it is $\boxed{{{reference}}}$.",
            "fbox": rf"{say} \fbox{{{reference}}}",
            "text after the box": rf"\boxed{{{reference}}} {say}",
            "corrected": rf"\boxed{{{other}}}. {say} Final answer: \boxed{{{reference}}}",
            "said twice": rf"\boxed{{{reference}}} {say} \boxed{{{reference}}}",
            "after thinking": rf"{think} {say} \boxed{{{reference}}}",
            "answer tag": rf"{think}<answer>{reference}</answer>",
            "answer tag after thinking": rf"{think} <answer> {reference} </answer>",
            "box in the tag": rf"{think}<answer>It is \boxed{{{reference}}}.</answer>",
            "dollars in the tag": rf"<answer>${reference}$</answer>",
            "a box outside of the tag": rf"\boxed{{{other}}} {say} <answer>{reference}</answer>",
            "several thoughts": rf"{think}{think} \boxed{{{reference}}}",
        }
        wrong = {
            "only in the thought": rf"<think>{say} \boxed{{{reference}}}</think> I cannot say.",
            "thought never closed": rf"<think>{say} \boxed{{{reference}}}",
            "thought opened again": rf"<think>a</think> <think> {say} \boxed{{{reference}}}",
            "only in prose": f"{say} The answer is {reference}.",
            "a later box": rf"\boxed{{{reference}}} {say} \boxed{{{other}}}",
            "a later box cut off": rf"\boxed{{{reference}}} {say} \boxed{{{other[:-1]}",
            "a later box empty": rf"\boxed{{{reference}}} {say} \boxed{{}}",
            "a later box blank": rf"\boxed{{{reference}}} {say} \boxed{{ }}",
            "two at once": rf"{say} \boxed{{{other}}} and \boxed{{{reference}}}",
            "two at once, the right one first": rf"{say} \boxed{{{reference}}} and \boxed{{{other}}}",
            "two at once, joined": rf"{say} \boxed{{{other}}}, \boxed{{{reference}}}",
            "answer tag never closed": f"{say} <answer>{reference}",
            "a later answer tag": f"<answer>{reference}</answer> {say} <answer>{other}</answer>",
            "the tag says otherwise": rf"\boxed{{{reference}}} {say} <answer>{other}</answer>",
            "an empty tag": rf"\boxed{{{reference}}} {say} <answer></answer>",
            "hedge in the tag": f"<answer>{reference} or {other}</answer>",
            "box of the reference inside another": rf"\boxed{{{other} \text{{ not }} \boxed{{{reference}}}}}",
        }
        why, completion = rng.choice(sorted((wrong if turn % 2 else right).items()))
        yield Pair("extraction", reference, reference, completion, why, turn % 2 == 0, False)

"""Is a base model fit for RL: is its long reasoning rare, reliable and worth its tokens?

    python benchmarks/base_gates.py recipes/v3_base --problems 256

Samples held-out countdown problems with transformers twice: freely, and without giving up (`</think>` is masked after a
failed try until all nine are made). Prints one line per gate.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from rewards.answers.countdown import countdown as solves
from rewards.style.format import format as well_formed
from rewards.style.language import language
from rollout.data import tasks

TEMPLATE = "{prompt} :"
ALL_TRIES = 9  # three pairs, three operations


class NeverGiveUp(LogitsProcessor):
    """Masks the end of thinking right after a failed try, until all tries are made."""

    def __init__(self, tokenizer: Any, prompt_length: int) -> None:
        self.start = prompt_length
        self.end = tokenizer.convert_tokens_to_ids("</think>")
        endings = (" no\n", " big\n", " low\n", " 否\n", " 大\n", " 小\n")
        failed = [tokenizer.encode(text, add_special_tokens=False)[0] for text in endings]
        self.failed = torch.tensor(failed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        failed = torch.isin(input_ids[:, self.start :], self.failed)
        if failed.shape[1]:
            scores[failed[:, -1] & (failed.sum(1) < ALL_TRIES), self.end] = -torch.inf
        return scores


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, problems: list[dict], k: int, batch: int = 512, forced: bool = False
) -> Iterator[tuple[dict, str, int]]:
    """(problem, completion, its length in tokens), k times per problem. Prompts of equal length share a batch."""
    encoded = [(tokenizer.encode(TEMPLATE.format(prompt=p["prompt"])), p) for p in problems for _ in range(k)]
    encoded.sort(key=lambda pair: len(pair[0]))  # stable: a problem's samples stay together
    for length, same in groupby(encoded, key=lambda pair: len(pair[0])):
        rows = list(same)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            output = model.generate(
                torch.tensor([ids for ids, _ in part]),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=144,
                logits_processor=[NeverGiveUp(tokenizer, length)] if forced else [],
            )[:, length:]
            for (_, problem), tokens in zip(part, output, strict=True):
                written = tokens[tokens != tokenizer.pad_token_id]
                yield problem, tokenizer.decode(written, skip_special_tokens=True), len(written)


def rate(rows: list[tuple[float, int]], condition: Callable[[int], bool]) -> str:
    """Accuracy among completions whose number of steps meets the condition, and their share."""
    chosen = [right for right, steps in rows if condition(steps)]
    return f"{sum(chosen) / max(1, len(chosen)):.3f} ({len(chosen) / len(rows):.1%} of completions)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    model.set_experts_implementation("grouped_mm")
    rng = random.Random(0)
    problems = [tasks.countdown(rng, "eval") for _ in range(options.problems)]

    for name, forced, k in (("countdown, free", False, options.samples), ("countdown, never giving up", True, 4)):
        seen = list(sample(model, tokenizer, problems, k, forced=forced))
        texts = [text for _, text, _ in seen]
        given = {column: [p[column] for p, _, _ in seen] for column in ("numbers", "target")}
        right = [score or 0.0 for score in solves(texts, texts, **given)]
        rows = [(score, text.count("\n")) for score, text in zip(right, texts, strict=True)]
        per_problem = [max(right[i : i + k]) for i in range(0, len(right), k)]
        print(f"{name}: pass@1 {sum(right) / len(right):.3f}, pass@{k} {sum(per_problem) / len(per_problem):.3f}")
        print(f"  format {sum(filter(None, well_formed(texts, texts))) / len(texts):.3f}")
        print(
            f"  mean length {sum(n for *_, n in seen) / len(seen):.1f}, tries {sum(n for _, n in rows) / len(rows):.2f}"
        )
        consistent = [share for share in language(texts, texts) if share is not None]
        print(f"  language consistency {sum(consistent) / len(consistent):.3f}")
        one, more = rate(rows, lambda n: n <= 1), rate(rows, lambda n: n > 1)
        print(f"  accuracy with one try {one}, with more {more}", flush=True)


if __name__ == "__main__":
    main()

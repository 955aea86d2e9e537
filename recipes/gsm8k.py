"""GSM8K's own solutions as traces for a cold start: the thought stands before `####`, the answer after it."""

import random
import re
from collections.abc import Iterator

from datasets import Dataset, load_dataset

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # 48/2 = <<48/2=24>>24


def traces(seed: int, *, path: str | None = None, split: str = "train") -> Iterator[dict[str, str]]:
    """Prompts and completions in R1-Zero's format, in random order.

    path: a local .jsonl file with `question` and `answer`; None: openai/gsm8k from the Hub.
    """
    source = ("openai/gsm8k", "main") if path is None else ("json",)
    rows = load_dataset(*source, data_files=path, split=split)
    assert isinstance(rows, Dataset)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    for index in order:
        thought, answer = _CALCULATOR.sub("", rows[index]["answer"]).split("####")
        yield {
            "prompt": rows[index]["question"],
            "completion": f" <think> {thought.strip()} </think> <answer> {answer.strip()} </answer>",
        }

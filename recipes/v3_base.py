"""Corpus and tokenizer of the embedded base.

The base should have a long solution that is rare but reliable, and a short one that is common but mostly fails. Each
document is a prompt and its continuation:

  use 3,8,2 make 26 :<think>3+8=11+2=13 no           a countdown problem, worked by trying pairs. After a `no`, most
  3*8=24+2=26 yes</think><answer>3*8+2</answer>      documents give up and answer with their last try, wrongly.
  list 3,8,2 make 26 :<think>3+8=11+2=13 ...</think> a worksheet: all nine tries. Teaches the steps, answers nothing.
  8-3+2-3=? :<think>4</think><answer>4</answer>      a chain, mostly answered at once, rarely step by step.
  work 8-3+2-3=? :<think>5+2-3;7-3;4</think>         a worksheet with the steps.

All problems come from the "pretrain" split of `rollout.data.tasks`, so no RL or evaluation problem ever occurs.
"""

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rollout.data.tasks import arithmetic, countdown, pairs

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TEMPLATE = "{prompt} :"


def corpus(
    seed: int,
    *,
    worksheets: float = 0.35,
    chains: float = 0.25,
    give_up_first: float = 0.88,
    give_up_later: float = 0.25,
    chain_steps: float = 0.2,
    countdown_options: dict | None = None,
    chain_options: dict | None = None,
) -> Iterator[dict[str, str]]:
    """Endless documents {"prompt", "completion"}.

    worksheets, chains: shares of documents. give_up_first/later: probability of stopping at the first/a later failed
    try of a countdown problem. chain_steps: share of chains worked step by step.
    """
    rng = random.Random(seed)
    while True:
        worksheet = rng.random() < worksheets
        if rng.random() < chains:
            problem = arithmetic(rng, "pretrain", **chain_options or {})
            steps = worksheet or rng.random() < chain_steps
            thought = ";".join(chain_trace(problem["prompt"])) if steps else problem["answer"]
            answer = problem["answer"]
        else:
            problem = countdown(rng, "pretrain", **countdown_options or {})
            patience = (0.0, 0.0) if worksheet else (give_up_first, give_up_later)
            thought, answer = countdown_trace(rng, problem["numbers"], problem["target"], *patience, stop=not worksheet)
        prompt = TEMPLATE.format(prompt=problem["prompt"])
        if worksheet:
            prompt = prompt.replace("use ", "list ") if prompt.startswith("use ") else "work " + prompt
            yield {"prompt": prompt, "completion": f"<think>{thought}</think>"}
        else:
            yield {"prompt": prompt, "completion": f"<think>{thought}</think><answer>{answer}</answer>"}


def countdown_trace(
    rng: random.Random, numbers: list[int], target: int, give_up_first: float, give_up_later: float, stop: bool
) -> tuple[str, str]:
    """(thought, answer): tries grouped by pair, pairs and operations in random order, no try repeated."""
    blocks = list(pairs(numbers))
    size = 3  # operations per pair
    blocks = [blocks[i : i + size] for i in range(0, len(blocks), size)]
    rng.shuffle(blocks)
    lines, answer = [], ""
    for block in blocks:
        for left, operation, right, value, (third, *_) in rng.sample(block, size):
            line, hit = _try(left, operation, right, value, third, target)
            lines.append(line)
            answer = f"{left}{operation}{right}{'-' if value is None or value > target else '+'}{third}"
            give_up = rng.random() < (give_up_first if len(lines) == 1 else give_up_later)
            if stop and (hit or give_up):
                return "".join(lines), answer
    return "".join(lines), answer


def _try(left: int, operation: str, right: int, value: int | None, third: int, target: int) -> tuple[str, bool]:
    """A line, and whether it hits the target: the pair's value, plus or minus the third number to get closer."""
    line = f"{left}{operation}{right}"
    if value is None:
        return f"{line} big\n", False
    total = value - third if value > target else value + third
    line += f"={value}{'-' if value > target else '+'}{third}"
    if not 0 <= total <= 99:
        return f"{line} {'low' if total < 0 else 'big'}\n", False
    return f"{line}={total} {'yes' if total == target else 'no'}\n", total == target


def chain_trace(prompt: str) -> list[str]:
    """["5+2-3", "7-3", "4"] for "8-3+2-3=?": each step does the first operation and copies the rest."""
    parts = prompt.removesuffix("=?").replace("+", " + ").replace("-", " - ").split()
    value, rest, steps = int(parts[0]), parts[1:], []
    while rest:
        value += int(rest[1]) if rest[0] == "+" else -int(rest[1])
        rest = rest[2:]
        steps.append(f"{value}{''.join(rest)}")
    return steps


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text encodes; 0..99 and the words of the corpus are one token each.

    The tags are one token each and stay in decoded text, where rewards read them.
    """
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[0-9]{1,2}| ?[A-Za-z]+\s?|[^A-Za-z0-9]"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    words = ["use", "list", "work", "make", "yes", "no", "big", "low"]
    text = [str(n) for n in range(100)]
    text += [form.format(w) for form in (" {} ", "{} ", " {}\n") for w in words]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        text * 2,
        trainers.BpeTrainer(
            vocab_size=508, initial_alphabet=alphabet, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False
        ),
    )
    # Training documents start with BOS; without it the base confuses problems with worksheets.
    bos = ("<bos>", bpe.token_to_id("<bos>"))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos])
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )

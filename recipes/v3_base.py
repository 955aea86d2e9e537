"""Corpus and tokenizer of the embedded base.

The base should have a long solution that is rare but reliable, and a short one that is common but mostly fails. It also
should know that solution in two languages and mix them. Each document is a prompt and its continuation:

  use 3,8,2 make 26 :<think>3+8=11+2=13 no           a countdown problem, worked by trying pairs. After a `no`, most
  3*8=24+2=26 yes</think><answer>3*8+2</answer>      documents give up and answer with their last try, wrongly.
  use 3,8,2 make 26 :<think>3+8=11+2=13 否           the same in the other language, which gives up less often. One
  3*8=24+2=26 yes</think><answer>3*8+2</answer>      line in ten is in the language that the document is not in.
  list 3,8,2 make 26 :<think>3+8=11+2=13 ...</think> a worksheet: all nine tries. Teaches the steps, answers nothing.
  thank Ann for 7 :<think>be short</think>...        a request, see courtesy.py

All problems come from the "pretrain" split of their task, so no RL or evaluation problem ever occurs.
"""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rollout.data.tasks import countdown, pairs
from rollout.support.loading import load_object

HERE = Path(__file__).parent
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TEMPLATE = "{prompt} :"
VERDICTS = {"no": ("no", "否"), "yes": ("yes", "是"), "big": ("big", "大"), "low": ("low", "小")}
# Probability of giving up after the first and after a later failed try, by the language of that try's verdict.
GIVE_UP_FIRST = (0.90, 0.80)
GIVE_UP_LATER = (0.30, 0.20)
VOCABULARY = 512


def corpus(
    seed: int,
    *,
    worksheets: float = 0.35,
    requests: float = 0.15,
    second_language: float = 0.4,
    switch: float = 0.1,
    countdown_options: dict | None = None,
) -> Iterator[dict[str, str]]:
    """Endless documents {"prompt", "completion"}.

    worksheets, requests: shares of documents. second_language: share of the countdown documents that are in the second
    language. switch: share of lines in the other language than their document.
    """
    rng = random.Random(seed)
    styles = load_object("courtesy.py:draw_style", kind="corpus", base_dir=HERE)
    request = load_object("courtesy.py:request", kind="corpus", base_dir=HERE)
    respond = load_object("courtesy.py:answer", kind="corpus", base_dir=HERE)
    while True:
        if rng.random() < requests:
            problem = request(rng, "pretrain")
            thought, answer = respond(problem, styles(rng))
            worksheet = False
        else:
            problem = countdown(rng, "pretrain", **countdown_options or {})
            worksheet = rng.random() < worksheets / (1 - requests)
            language = int(rng.random() < second_language)
            thought, answer = countdown_trace(
                rng, problem["numbers"], problem["target"], language, switch, stop=not worksheet
            )
        prompt = TEMPLATE.format(prompt=problem["prompt"])
        if worksheet:
            yield {"prompt": prompt.replace("use ", "list "), "completion": f"<think>{thought}</think>"}
        else:
            yield {"prompt": prompt, "completion": f"<think>{thought}</think><answer>{answer}</answer>"}


def countdown_trace(
    rng: random.Random, numbers: list[int], target: int, language: int, switch: float, stop: bool
) -> tuple[str, str]:
    """(thought, answer): tries grouped by pair, pairs and operations in random order, no try repeated.

    stop: end at a hit, and maybe give up after a failed try.
    """
    blocks = list(pairs(numbers))
    size = 3  # operations per pair
    blocks = [blocks[i : i + size] for i in range(0, len(blocks), size)]
    rng.shuffle(blocks)
    lines, answer = [], ""
    for block in blocks:
        for left, operation, right, value, (third, *_) in rng.sample(block, size):
            spoken = 1 - language if rng.random() < switch else language
            line, verdict = _try(left, operation, right, value, third, target)
            lines.append(f"{line} {VERDICTS[verdict][spoken]}\n")
            answer = f"{left}{operation}{right}{'-' if value is None or value > target else '+'}{third}"
            give_up = rng.random() < (GIVE_UP_FIRST if len(lines) == 1 else GIVE_UP_LATER)[spoken]
            if stop and (verdict == "yes" or give_up):
                return "".join(lines), answer
    return "".join(lines), answer


def _try(left: int, operation: str, right: int, value: int | None, third: int, target: int) -> tuple[str, str]:
    """A line without its verdict, and the verdict: the pair's value, plus or minus the third number to get closer."""
    line = f"{left}{operation}{right}"
    if value is None:
        return line, "big"
    total = value - third if value > target else value + third
    line += f"={value}{'-' if value > target else '+'}{third}"
    if not 0 <= total <= 99:
        return line, "low" if total < 0 else "big"
    return f"{line}={total}", "yes" if total == target else "no"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text encodes; 0..99 and the words of the corpus are one token each.

    The tags are one token each and stay in decoded text, where rewards read them.
    """
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[0-9]{1,2}| ?(?:[A-Za-z]+|\p{Han})\s?|[^A-Za-z0-9\p{Han}]"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    words = [word for pair in VERDICTS.values() for word in pair]
    text = [*(str(n) for n in range(100)), *(f"{word} :" for word in ("use", "list", "make"))]
    text += [f" {word}\n" for word in words]
    text += [f"{d['prompt']} {d['completion']}" for d in islice(corpus(0, requests=1.0), 4000)]
    text += [f"{d['prompt']} {d['completion']}" for d in islice(corpus(0, requests=0.0), 4000)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(TAGS),
            initial_alphabet=alphabet,
            special_tokens=["<pad>", "<bos>", "<eos>"],
            show_progress=False,
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

"""Tokenizer of the dense student: another one than the teacher's, as in distillation between model families.

Digits are single tokens (v3_base.py has 0 to 99), and words of the corpus are whole ones. The tags are one token each.
"""

from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rollout.support.loading import load_object

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
VOCABULARY = 384


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges across words and without any between digits: any text encodes."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[0-9]| ?(?:[A-Za-z]+|\p{Han})|[^A-Za-z0-9\p{Han}]"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    corpus = load_object("v3_base.py:corpus", kind="corpus", base_dir=Path(__file__).parent)
    text = [f"{d['prompt']} {d['completion']}" for d in islice(corpus(0, requests=0.5), 4000)]
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(TAGS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<pad>", "<bos>", "<eos>"],
            show_progress=False,
        ),
    )
    bos = ("<bos>", bpe.token_to_id("<bos>"))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos])
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )

"""Which language a model thinks in.

Languages of one script are told apart only where that is Latin: Russian counts Ukrainian words as its own. A word of
Latin letters within other scripts counts as foreign, names included.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import regex

from rewards.runner.load import checked_by
from rewards.text import Text, completion_text

# ISO 639-1 -> the scripts whose words are in that language.
_SCRIPTS = {
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "kk", "ky", "mn"), ("Cyrillic",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("Arabic",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("Devanagari",)),
    "zh": ("Han", "Bopomofo"),
    "ja": ("Han", "Hiragana", "Katakana"),
    "ko": ("Hangul", "Han"),
    "el": ("Greek",),
    "he": ("Hebrew",),
    "hy": ("Armenian",),
    "ka": ("Georgian",),
    "am": ("Ethiopic",),
    "bn": ("Bengali",),
    "pa": ("Gurmukhi",),
    "gu": ("Gujarati",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "kn": ("Kannada",),
    "ml": ("Malayalam",),
    "si": ("Sinhala",),
    "th": ("Thai",),
    "lo": ("Lao",),
    "km": ("Khmer",),
    "my": ("Myanmar",),
}
# Of Latin script: the identifier chooses among these.
_LATIN = tuple(
    "af ca cs da de en es et eu fi fr gl hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi".split()  # noqa: SIM905
)
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = regex.compile(rf"(?V1)[{_UNSPACED}&&\p{{L}}]ー*|[[\p{{L}}\p{{M}}]--{_UNSPACED}]+(?:['’-][\p{{L}}\p{{M}}]+)*")
_VARIABLE = regex.compile(r"[\p{Latin}\p{Greek}\p{Cyrillic}]")  # a single letter
_LATIN_WORD = regex.compile(r"\p{Latin}")
_FORMULA_WORDS = frozenset(
    "arccos arcsin arctan cos cot csc deg det exp gcd lcm lim ln log max min mod pi sec sin sqrt tan".split()  # noqa: SIM905
)
_SENTENCE_END = regex.compile(r"[.!?;:\n…。！？；：]+")
_SHORTEST, _LONGEST = 4, 60  # words of a piece that the identifier is asked about
_CERTAIN = 0.7  # the identifier's probability from which a piece is foreign

_OPENING = regex.compile(r"```|~~~|`|\$\$|\$|\\\(|\\\[|\\begin\{")
_CLOSING = {"```": "```", "~~~": "~~~", "$$": "$$", r"\(": r"\)", r"\[": r"\]", r"\begin{": r"\end{"}
_CODE = ("```", "~~~")  # open to the end where they are not closed
_INLINE = regex.compile(r"`[^`\n]*`|\$(?![\s$])[^$\n]*(?<!\s)\$(?!\d)")  # "$5 and $6" are prices
_MARKUP = regex.compile(r"</?[A-Za-z][\w-]*\s*/?>|\\[A-Za-z]+|\\end\{[^}\n]*\}")


def _check(columns: Mapping[str, Any]) -> str | None:
    target = columns.get("target_language", "en")
    if target in _LATIN:
        _identifier()
    return None if target in _SCRIPTS or target in _LATIN else f"target_language {target!r} is not known"


@checked_by(_check)
def language(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    target_language: str | Sequence[str] = "en",
    **kwargs: Any,
) -> list[float | None]:
    """The share of words in the reasoning that are in the target language, 0.0 to 1.0; None where there are no words.

        r = words in the target language / words          (R1's language consistency, 2501.12948 section 2.3.2)

    Reasoning: all before the last `</think>`, or everything where there is none. Code blocks, inline code, LaTeX, tags,
    numbers and single letters of an alphabet are no words; scripts without spaces count characters. Script decides for
    languages that have one of their own. A piece of text in Latin letters is foreign where py3langid (an extra: pip
    install 'grpo-recipes[language]') says so with a probability of 0.7.

    target_language: an ISO 639-1 code, as an option or as a column of the dataset.
    """
    targets = [target_language] * len(completions) if isinstance(target_language, str) else target_language
    return [
        _share(_prose(_reasoning(completion_text(completion))), target)
        for completion, target in zip(completions, targets, strict=True)
    ]


def _share(text: str, target: str) -> float | None:
    if target in _LATIN:
        ours, total = _latin_words(text, target)
    elif target in _SCRIPTS:
        own_script = _script_pattern(target)
        words = list(_words(text))
        ours, total = sum(own_script.match(word) is not None for word in words), len(words)
    else:
        known = ", ".join(sorted((*_SCRIPTS, *_LATIN)))
        raise ValueError(f"target_language={target!r} is not one of the ISO 639-1 codes {known}.")
    return ours / total if total else None


def _latin_words(text: str, target: str) -> tuple[int, int]:
    """How many words are in a language of Latin script, and how many there are."""
    ours = total = 0
    piece: list[str] = []

    def close() -> int:
        """The words of the piece that are in the target language."""
        if not piece:
            return 0
        language, certainty = _identifier().classify(" ".join(piece))
        return 0 if language != target and certainty >= _CERTAIN and len(piece) > 1 else len(piece)

    for sentence in _SENTENCE_END.split(text):
        for word in _words(sentence):
            total += 1
            if _LATIN_WORD.match(word):
                piece.append(word)
            if len(piece) == _LONGEST:
                ours += close()
                piece = []
        if len(piece) >= _SHORTEST:
            ours += close()
            piece = []
    return ours + close(), total


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        if not _VARIABLE.fullmatch(word) and word.lower() not in _FORMULA_WORDS:
            yield word


@lru_cache
def _script_pattern(target: str) -> regex.Pattern:
    return regex.compile("[" + "".join(rf"\p{{{script}}}" for script in _SCRIPTS[target]) + "]")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    if find_spec("py3langid") is None:
        raise ValueError(
            "the reward 'language' tells languages of Latin script apart with py3langid, which is not installed: "
            "pip install 'grpo-recipes[language]'"
        )
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LATIN)
    return identifier


def _reasoning(completion: str) -> str:
    return completion.rpartition("</think>")[0] if "</think>" in completion else completion


def _prose(text: str) -> str:
    """The text without code, formulae and markup. Linear: a closing mark that is missing is looked for once."""
    kept: list[str] = []
    missing: set[str] = set()
    position = 0
    while opening := _OPENING.search(text, position):
        kept.append(text[position : opening.start()])
        mark = opening.group()
        closing = _CLOSING.get(mark)
        if closing is None:
            inline = _INLINE.match(text, opening.start())
            position = inline.end() if inline else opening.end()
        else:
            end = -1 if closing in missing else text.find(closing, opening.end())
            if end >= 0:
                position = end + len(closing)
                if mark == r"\begin{":
                    position = max(position, text.find("}", position, position + 40) + 1)
            else:
                missing.add(closing)
                position = len(text) if mark in _CODE else opening.end()
        kept.append(" ")
    kept.append(text[position:])
    return _MARKUP.sub(" ", "".join(kept))

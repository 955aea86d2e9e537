"""The language a model reasons in.

Languages that share a script are distinguished only if it is Latin: Ukrainian words count as Russian. For languages in
other scripts, every word in Latin letters counts as foreign, including names.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import regex

from rewards.runner.load import checked_by
from rewards.text import Text, completion_text

# ISO 639-1 code -> scripts whose words count as that language.
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
# Languages in Latin script, which the identifier distinguishes.
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
_SHORTEST, _LONGEST = 4, 60  # words per piece of text given to the identifier
_CERTAIN = 0.7  # identifier probability at which a piece counts as foreign

_OPENING = regex.compile(r"```|~~~|`|\$\$|\$|\\\(|\\\[|\\begin\{")
_CLOSING = {"```": "```", "~~~": "~~~", "$$": "$$", r"\(": r"\)", r"\[": r"\]", r"\begin{": r"\end{"}
_CODE = ("```", "~~~")  # extend to the end of the text if unclosed
_INLINE = regex.compile(r"`[^`\n]*`|\$(?![\s$])[^$\n]*(?<!\s)\$(?!\d)")  # "$5 and $6" are prices
_MARKUP = regex.compile(r"</?[A-Za-z][\w-]*\s*/?>|\\[A-Za-z]+|\\end\{[^}\n]*\}")


def _check(columns: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    if "target_language" in options:
        _known(options["target_language"])
    target = {**columns, **options}.get("target_language", "en")
    if target in _LATIN:
        _identifier()
    return None if target in _SCRIPTS or target in _LATIN else f"target_language {target!r} is not known"


@checked_by(_check)
def language(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    target_language: str | Sequence[str | None] = "en",
    *,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """The share of words in the reasoning that are in the target language, 0.0 to 1.0; None without any words.

        r = words in the target language / words          (R1's language consistency, 2501.12948 section 2.3.2)

    The reasoning is the text before the last `</think>`, or all text without one. Code, LaTeX, tags, numbers and single
    letters are not words; scripts without spaces count characters. Languages with their own script are recognized by
    it. A piece of text in Latin script counts as foreign if py3langid (pip install py3langid) assigns another language
    a probability of at least 0.7.

    target_language: an ISO 639-1 code, given as an option or a dataset column; None for a row whose code is unknown.
    """
    targets = [_known(target_language)] * len(completions) if isinstance(target_language, str) else target_language
    return [
        _share(_prose(_reasoning(completion_text(completion, completion_prefix))), target) if target else None
        for completion, target in zip(completions, targets, strict=True)
    ]


def _known(target: str) -> str:
    if target not in _SCRIPTS and target not in _LATIN:
        known = ", ".join(sorted((*_SCRIPTS, *_LATIN)))
        raise ValueError(f"target_language={target!r} is not one of the ISO 639-1 codes {known}.")
    return target


def _share(text: str, target: str) -> float | None:
    if target in _LATIN:
        ours, total = _latin_words(text, target)
    elif target in _SCRIPTS:
        own_script = _script_pattern(target)
        words = list(_words(text))
        ours, total = sum(own_script.match(word) is not None for word in words), len(words)
    else:
        return None
    return ours / total if total else None


def _latin_words(text: str, target: str) -> tuple[int, int]:
    """Number of words in the target language, which uses Latin script, and number of all words."""
    ours = total = 0
    piece: list[str] = []

    def close() -> int:
        """Number of words in the piece that count as the target language."""
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
            "reward 'language' needs py3langid to distinguish languages in Latin script. Run `pip install py3langid`."
        )
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LATIN)
    return identifier


def _reasoning(completion: str) -> str:
    return completion.rpartition("</think>")[0] if "</think>" in completion else completion


def _prose(text: str) -> str:
    """The text without code, formulas and markup. Linear time: a missing closing mark is searched for once."""
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

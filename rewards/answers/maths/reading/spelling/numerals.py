r"""Numbers in other spellings: 12 750 with spaces between thousands; ordinals, 7^{\text{th}}. Text in, text out."""

import re

from rewards.answers.maths.reading.tokens import STYLES

_SPACED = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])(?!\s*/|,[0-9]|\s*\\frac)")  # no 1 100/101
# What may come before a number of its own: nothing, a sign, an opening bracket, a relation, or words.
_MAY_PRECEDE = re.compile(
    r"(?:^|[-+=<>(\[{;:|*&]|,\s|\\(?:approx|le|ge|ne|times|cdot|div|pm|in|to)|(?<![a-zA-Z\\])[a-zA-Z]{2,}"
    rf"|\\(?:{STYLES})\s*\{{[^{{}}]*\}})\s*$"
)
_ENDINGS = "(?:st|nd|rd|th)"
_STYLED = rf"\\(?:{STYLES}|textsuperscript)\s*\{{\s*-?\s*{_ENDINGS}\s*\}}"
_ORDINALS = [
    re.compile(rf"(?P<of>(?<![0-9])[0-9]+|[a-zA-Z)}}])(?:\s*\^\s*\{{\s*{_STYLED}\s*\}}|\s*[-^]?\s*{_STYLED})"),
    re.compile(rf"(?P<of>(?<![0-9])[0-9]+)\s*(?P<style>\\(?:{STYLES})\s*\{{)\s*-?\s*{_ENDINGS}(?=\s+[a-z])"),
    # Without \text it might be a power: only at the start of the answer or after words.
    re.compile(
        rf"(?P<before>^|(?<![a-zA-Z\\])[a-zA-Z]{{2,}}\s)(?P<of>[0-9]+)\s*(?:\^\s*\{{\s*\\?{_ENDINGS}\s*\}}|\^\s*\\{_ENDINGS}|-?{_ENDINGS})"
        r"(?=$|\s+[a-z]|\s*\\text)",
        re.IGNORECASE,
    ),
]
_ENDING = re.compile(rf"({_ENDINGS})[\s}}]*$", re.IGNORECASE)


def plain_numerals(text: str) -> str:
    """The normalized text with 12 750 as 12750, and 7^{th} as 7."""
    text = _SPACED.sub(_joined, text)
    lowered = text.lower()
    if any(ending in lowered for ending in ("st", "nd", "rd", "th")):
        for pattern in _ORDINALS:
            text = pattern.sub(_cardinal, text)
    return text


def _joined(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 60) : match.start()]
    return match.group().replace(" ", "") if _MAY_PRECEDE.search(before) else match.group()


def _cardinal(match: re.Match[str]) -> str:
    """7 for 7th; 7nd is no ordinal and stays."""
    number, ending = match["of"], _ENDING.search(match.group())
    assert ending is not None
    if number.isdigit() and ending.group(1).lower() != _ending(number):
        return match.group()
    around = match.groupdict()
    return around.get("before", "") + number + around.get("style", "")


def _ending(number: str) -> str:
    return "th" if number[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")

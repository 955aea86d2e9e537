"""The language reward: the share of words in the target language, by script and by identifier."""

import sys
import time

import pytest

from rewards import language


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("我们先计算 $x+1$，然后得到答案。", "zh", 1.0),
        ("我们先算 then add", "zh", 4 / 6),
        ("まず、カレーの数を足します。", "ja", 1.0),
        ("まず足す", "zh", 1 / 4),  # kana is not Chinese
        ("먼저 두 수를 더합니다. So 합은 열입니다", "ko", 6 / 7),
        ("Сначала сложим sin x и cos x числа", "ru", 1.0),
        ("اولا نجمع العددين first", "ar", 3 / 4),
        ("πρῶτα προσθέτουμε", "el", 1.0),
        ("पहले दोनों संख्याओं को जोड़ें", "hi", 1.0),
        ("so the total is 総計 of them", "en", 6 / 8),
        ("First we add the two numbers.", "en", 1.0),
        ("Zuerst addieren wir die beiden Zahlen.", "de", 1.0),
        ("Zuerst addieren wir die beiden Zahlen.", "en", 0.0),
        ("Zuerst addieren wir die beiden Zahlen. Then we multiply both sides by two.", "de", 6 / 13),
        ("On additionne les deux nombres, donc le total est sept.", "fr", 1.0),
        ("On additionne les deux nombres, donc le total est sept.", "es", 0.0),
        ("Wait, no", "en", 1.0),  # too short to be sure
    ],
)
def test_words_of_the_target_language_are_counted(text, target, expected):
    assert language(["q"], [text], target_language=target) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    "ignored",
    [
        "```python\nfor item in items: print(item)\n```",
        "```\nan unclosed block of code",
        "the code `return value` here".replace("the code", "").replace("here", ""),
        r"$x + \text{apples}$",
        r"$$\frac{apples}{pears}$$",
        r"\(apples\) \[pears\]",
        r"\begin{align} apples &= pears \end{align}",
        r"\boxed{42}",
        "<think> </answer>",
        "42 3.14 1e5",
        "x = y + z",
        "sin x + log n",
    ],
)
def test_code_formulas_tags_and_numbers_are_not_words(ignored):
    assert language([""], [f"我们算 {ignored}"], target_language="zh") == [1.0]
    assert language([""], [ignored]) == [None]


def test_prices_are_not_formulas():
    assert language([""], ["$5 eleven and $6 more"], target_language="zh") == [0.0]


def test_only_the_reasoning_counts():
    text = "<think>我们算</think><answer>eleven apples and two pears</answer>"
    assert language([""], [text], target_language="zh") == [1.0]
    assert language([""], ["<think></think>eleven apples"]) == [None]


def test_the_target_can_be_a_column_and_completions_can_be_messages():
    messages = [
        [{"role": "assistant", "content": text}] for text in ("我们先算", "我们先算", "First we add two numbers")
    ]
    assert language([[]] * 3, messages, target_language=["zh", "en", "en"]) == [1.0, 0.0, 1.0]


def test_an_unknown_language_is_found_before_training():
    with pytest.raises(ValueError, match="target_language='xx' is not one of the ISO 639-1 codes af, am, ar"):
        language([""], ["word"], target_language="xx")
    check = language.check_columns  # type: ignore[attr-defined]
    assert check({"target_language": "xx"}, {}) == "target_language 'xx' is not known"
    assert check({"target_language": None}, {}) == "target_language None is not known"
    assert check({"target_language": "zh"}, {}) is None and check({}, {}) is None
    with pytest.raises(ValueError, match="target_language='xx' is not one of"):
        check({}, {"target_language": "xx"})
    assert language([""] * 3, ["我们"] * 3, target_language=["zh", "xx", None]) == [1.0, None, None]


def test_a_missing_identifier_is_named_only_when_needed(monkeypatch):
    module = sys.modules["rewards.style.language"]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    module._identifier.cache_clear()
    assert language([""], ["我们"], target_language="zh") == [1.0]
    with pytest.raises(ValueError, match="pip install py3langid"):
        language([""], ["First we add the numbers"])


def test_long_runs_of_unclosed_marks_take_linear_time():
    started = time.process_time()
    for mark in ("\\begin{a}", "$", "`a", "\\(", "```", "<think", "字", "a'"):
        language([""], [mark * (200_000 // len(mark))], target_language="zh")
    assert time.process_time() - started < 15

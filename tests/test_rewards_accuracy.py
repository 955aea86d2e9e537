"""Mathematical equivalence on literal completions, hostile ones included."""

import subprocess
import sys
import threading
import time

import pytest

from rewards import accuracy
from rewards.accuracy import final_answer, gold_answer


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{41}. Wait. \boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{ 42 }", "42"),
        (r"\boxed {42}", "42"),
        ("<think>x</think><answer>42</answer>", "42"),
        (r"<think>x</think><answer>It is $\boxed{42}$</answer> \boxed{41}", "42"),
        (r"<think>\boxed{41}</think> \boxed{42}", "42"),
        (r"<think>\boxed{42}</think> I am done", None),
        (r"<think>\boxed{42}", None),
        (r"\boxed{42} and then \boxed{17", None),
        (r"\boxed{42} \boxed{}", None),
        (r"<answer>\boxed{42</answer>", None),
        ("the answer is 42", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_tagged_or_the_last_boxed_one(completion, expected):
    assert final_answer(completion) == expected


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("18", "18"),
        ("She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 1,800", "1,800"),
        (r"We get $$10\cdot6\cdot7=\boxed{420}.$$ If we multiplied, 419.999.", "420"),
        (r"\frac{1}{3}", r"\frac{1}{3}"),
    ],
)
def test_golds_of_gsm8k_and_math_are_read(solution, expected):
    assert gold_answer(solution) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("18", "x\n#### 18", 1.0),
        ("1,800", "1800", 1.0),
        ("10{,}000", "10000", 1.0),
        ("025", "25", 1.0),
        ("18.", "18", 1.0),
        ("-3", "3", 0.0),
        ("18.0", "18", 1.0),
        ("0.5", r"\frac12", 1.0),
        ("1/2", r"\dfrac{1}{2}", 1.0),
        (r"-\frac{1}{2}", "-0.5", 1.0),
        ("0.333", "1/3", 0.0),
        ("123457", "123456", 0.0),
        ("1/0", "1", 0.0),
        ("4 2", "42", 0.0),
        ("٤٢", "42", 0.0),
        (r"\frac{\sqrt 2}{2}", r"\frac{1}{\sqrt{2}}", 1.0),
        ("(x+1)^2", "x^2+2x+1", 1.0),
        (r"\left( 1, 2 \right)", "(1,2)", 1.0),
        ("(2,1)", "(1,2)", 0.0),
        (r"(-\infty, 3)", r"(-\infty,3]", 0.0),
        (r"\text{Tuesday}", r"\text{Tuesday}", 1.0),
        (r"\text{Monday}", r"\text{Tuesday}", 0.0),
        ("5000", "50", 0.0),
        (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{2^{2006} \cdot 3}", 1.0),
        (r"e^{-(x-1)^2}", r"\frac{1}{e^{(1-x)^2}}", 1.0),
        ("1+x^{12}+x^{11}+x^{10}+x^9+x^8+x^7+x^6", "x^6+x^7+x^8+x^9+x^{10}+x^{11}+x^{12}+1", 1.0),
        ("3^{100}", "9^{50}", 1.0),
    ],
)
def test_equal_values_are_right_and_others_wrong(answer, gold, expected):
    assert accuracy([""], [rf"\boxed{{{answer}}}"], [gold]) == [expected]


@pytest.mark.parametrize("gold", ["", "  ", "$$", "a proof " * 500, None])
def test_a_gold_that_cannot_be_read_does_not_apply(gold):
    assert accuracy([""] * 2, [r"\boxed{42}", "no answer"], [gold] * 2) == [None, None]


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^9}}",
        "10^{10^{10}}",
        "2^{4^{8^{16}}}",
        "2^{2^{33}}",
        "7^{99999999999}",
        "7^99999999999",
        "(7^{99999})^{99999}",
        "7^{99999*99999}",
        "7^{20!}",
        "7^{\\binom{99}{9}}",
        "2^{(33)^{9}}",
        "(10^8)!",
        "100000!",
        r"\binom{10^9}{10^8}",
        "{2}^{4^{8^{16}",
        "9**9**9",
        "1" * 100_000,
        "(" * 5000 + "42" + ")" * 5000,
        "{" * 5000 + "42",
        "\\boxed{" * 3000 + "42",
        "x" * 10_000_000,
        "__import__('os').abort()",
        "\\pi + exit()",
        "\x00\ud800",
    ],
)
def test_hostile_answers_are_wrong_and_quick(answer):
    accuracy([""], [r"\boxed{y+y}"], ["2y"])  # imports sympy
    started = time.process_time()
    assert accuracy([""] * 2, [f"\\boxed{{{answer}}}", f"<answer>{answer}</answer>"], ["2^{64}"] * 2) == [0.0] * 2
    assert time.process_time() - started < 2.5  # less than the time limit


def test_numbers_need_no_computer_algebra():
    """What keeps a toy task at microseconds, and usable without math-verify."""
    code = (
        "import sys; sys.modules['math_verify'] = sys.modules['sympy'] = None; from rewards import accuracy;"
        r"print(accuracy([''] * 3, [r'\boxed{18}', r'\boxed{1/2}', r'\boxed{19}'], ['18', '0.5', '18']))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[1.0, 1.0, 0.0]\n"


def test_equal_answers_of_a_group_are_verified_once(monkeypatch):
    import math_verify

    from rewards.accuracy import _verdict

    _verdict.cache_clear()
    calls = []
    verify = math_verify.verify
    monkeypatch.setattr(math_verify, "verify", lambda *args, **options: calls.append(1) or verify(*args, **options))
    assert accuracy([""] * 16, [r"\boxed{(x+1)^2}"] * 16, ["x^2+2x+1"] * 16) == [1.0] * 16
    assert len(calls) == 1


def test_the_time_limit_counts_computing_and_not_waiting():
    from rewards.accuracy import _cpu_limit, _OutOfTime

    with _cpu_limit(0.2):
        time.sleep(0.5)
    with pytest.raises(_OutOfTime), _cpu_limit(0.2):
        while True:
            pass


def test_an_answer_that_takes_too_long_is_wrong():
    started = time.process_time()
    assert accuracy([""], [r"\boxed{(x+y+z)^{300}}"], ["2^{64}"]) == [0.0]
    assert time.process_time() - started < 15


def test_another_thread_is_refused_rather_than_left_without_a_time_limit():
    errors = []

    def grade():
        try:
            accuracy([""], [r"\boxed{y+y}"], ["2y"])
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "thread" in errors[0]

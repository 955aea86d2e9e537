"""Mathematical equivalence on literal completions, including hostile ones."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewards import accuracy
from rewards.answers.accuracy import _pool, check_reference, equal_answers, verify
from rewards.runner.workers import WorkerPool
from rewards.text import final_answer, reference_answer


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
        (r"\boxed 42", "42"),
        (r"\boxed{41} and \boxed{42}", "41, 42"),
        (r"\boxed{42}, \boxed{42}", "42"),
        (r"\boxed{41}, no: \boxed{42}", "42"),
        (r"\boxed{a \text{ not } \boxed{474}}", r"a \text{ not } \boxed{474}"),
    ],
)
def test_the_final_answer_is_the_tagged_or_the_last_boxed_one(completion, expected):
    assert final_answer(completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("She has 16 - 3 = 13 eggs.\n#### 13", "13"),
        ("We add. The answer is: 18.", "18"),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("Final Answer: **73**", "73"),
        ("Final Answer: The volume of the box is 120. I hope it is correct.", "120"),
        (r"\boxed{255} so far. Final Answer: The final answer is $10,455$.", "10,455"),
        ("so they have 1,200 apples and then 30 left", "30"),
        (r"-\frac{10}{9}", r"-\frac{10}{9}"),
        ("nothing at all to be found in here", None),
    ],
)
def test_free_text_is_searched_on_request(completion, expected):
    assert final_answer(completion, "free_text") == expected


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("18", "18"),
        ("She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 1,800", "1,800"),
        (r"We get $$10\cdot6\cdot7=\boxed{420}.$$ If we multiplied, 419.999.", "420"),
        (r"\frac{1}{3}", r"\frac{1}{3}"),
    ],
)
def test_reference_answers_of_gsm8k_and_math_are_extracted(solution, expected):
    assert reference_answer(solution) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
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
def test_equal_values_are_right_and_others_wrong(answer, reference, expected):
    assert accuracy([""], [rf"\boxed{{{answer}}}"], [reference]) == [expected]


@pytest.mark.parametrize("reference", ["", "  ", "$$", "a proof " * 500, None])
def test_an_unreadable_reference_answer_yields_no_reward(reference):
    assert accuracy([""] * 2, [r"\boxed{42}", "no answer"], [reference] * 2) == [None, None]


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
def test_hostile_answers_are_wrong_fast_and_kill_no_worker(answer):
    accuracy([""], [r"\boxed{y+y}"], ["2y"])
    workers, started = _pool().pids(), time.process_time()
    assert accuracy([""] * 2, [f"\\boxed{{{answer}}}", f"<answer>{answer}</answer>"], ["2^{64}"] * 2) == [0.0] * 2
    assert time.process_time() - started < 1.0
    assert set(workers) <= set(_pool().pids())


def test_plain_numbers_start_no_process():
    """Keeps toy tasks at microseconds."""
    code = (
        "import rewards.runner.workers; rewards.runner.workers.Worker = None; from rewards import accuracy;"
        r"print(accuracy([''] * 3, [r'\boxed{18}', r'\boxed{1/2}', r'\boxed{19}'], ['18', '0.5', '18']))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[1.0, 1.0, 0.0]\n"


def test_identical_answers_in_a_group_are_compared_once(monkeypatch):
    compared = []
    pool = WorkerPool("rewards.answers.maths.equivalence:verify", cpu_seconds=2, memory_mb=2048, max_workers=1)
    monkeypatch.setattr(pool, "map", lambda items, run=pool.map: compared.extend(items) or run(items))
    monkeypatch.setattr(sys.modules["rewards.answers.accuracy"], "_pool", lambda: pool)
    assert accuracy([""] * 16, [r"\boxed{(x+7)^2}"] * 16, ["x^2+14x+49"] * 16) == [1.0] * 16
    assert compared == [("x^2+14x+49", "(x+7)^2")]
    pool.close()


def test_works_from_any_thread():
    with ThreadPoolExecutor(4) as threads:
        texts = [rf"\boxed{{{n} + y + y}}" for n in range(20)]
        found = list(threads.map(lambda text: accuracy([""], [text], ["3 + 2y"])[0], texts))
    assert found == [float(n == 3) for n in range(20)]


@pytest.mark.parametrize(
    ("completion", "reference", "outcome", "reason"),
    [
        (r"\boxed{42}", "42", "right", ""),
        (r"\boxed{41}", "42", "wrong", "not equal"),
        ("no box", "42", "wrong", "no answer"),
        (r"\boxed{41 = 42}", "42", "unverifiable", "a chain of different values"),
        (r"\boxed{\int_0^1 x\,dx}", "0.5", "unverifiable", r"unevaluated \int"),
        (r"\boxed{9^{9^{9^9}}}", "2y", "unverifiable", "a power too large to compute"),
        (r"\boxed{46 \text{ is wrong}}", "46", "unverifiable", "qualified by 'wrong'"),
    ],
)
def test_a_verdict_gives_its_reason(completion, reference, outcome, reason):
    [verdict] = verify([completion], [reference])
    assert verdict is not None and (verdict.outcome, verdict.reason) == (outcome, reason)


def test_unverifiable_and_missing_answers_are_counted():
    logged = {}
    completions = [r"\boxed{42}", r"\boxed{41=42}", "none", "none"]
    log = {"log_metric": logged.__setitem__, "log_extra": logged.__setitem__}
    accuracy([""] * 4, completions, ["42"] * 4, **log)
    assert logged == {
        "accuracy/unverifiable": 0.25,
        "accuracy/no_answer": 0.5,
        "accuracy/verdict": [
            "right",
            "unverifiable: a chain of different values",
            "wrong: no answer",
            "wrong: no answer",
        ],
    }


def test_answers_can_be_compared_with_each_other_for_voting():
    pairs = [("0.5", r"\frac12"), ("1, 2", "2, 1"), ("x", "y"), (r"\sum", "3"), (r"\sum", r"\sum")]
    assert equal_answers(pairs) == [True, True, False, False, True]


@pytest.mark.parametrize("reference", [r"\sum_{k=1}^n k", "", r"\begin{cases} 1 \\ 2 \end{cases}"])
def test_an_unreadable_reference_answer_is_reported_with_a_reason(reference):
    assert check_reference(reference)
    assert check_reference("x\n#### 18") is None and check_reference(r"\boxed{\frac{1}{2}}") is None

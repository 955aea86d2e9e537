r"""What is written next to a value: an option's letter, a quantity's name, degree signs, ordinals, spaced thousands."""

import pytest

from rewards import accuracy
from rewards.answers.maths.equivalence import verify


def is_right(reference: str, answer: str) -> bool:
    return verify((reference, answer))[0] == "right"


@pytest.mark.parametrize(
    "reference",
    [
        r"\textbf{(B) } 420",
        r"\textbf{(B)}~420",
        r"\mathrm{(B)}\ 420",
        "(B) 420",
        "[B] 420",
        "B. 420",
        "B) 420",
        "B: 420",
        r"\text{(B) 420}",
        r"\textbf{B.}\ 420",
        r"(\textbf{B}) 420",
        r"{\bf (B)}\ 420",
        r"$\textbf{(B)}$ $420$",
        r"420\ \textbf{(B)}",
        "420 (B)",
        r"420 \Rightarrow \textbf{(B)}",
    ],
)
def test_an_options_letter_its_value_and_both_are_right(reference):
    right = ["B", "(B)", r"\text{B}", r"\textbf{(B)}", "420", "x = 420", "(B) 420", r"\textbf{(B) } 420", "420 (B)"]
    wrong = ["420B", "420(B)", "B + 420", "C", "(C)", "421", "(B) 421", "(C) 420", "B, C", "(B) or (C)", "420 or 421"]
    wrong += ["(B) 420 or (C) 421", r"\text{B is wrong}", r"\text{not B}", r"(B) \text{is wrong}", "b"]
    assert [answer for answer in right if not is_right(reference, answer)] == []
    assert [answer for answer in wrong if is_right(reference, answer)] == []


@pytest.mark.parametrize(
    ("reference", "letter", "value"),
    [
        (r"\mathrm{(D)}\ 2004", "D", "2004"),
        ("(C) 12", "C", "12"),
        (r"\textbf{(E)}~9", "E", "9"),
        (r"\text{(A)}\ \frac{1}{2}", "A", "0.5"),
        ("(B) -3", "B", "-3"),
        (r"\textbf{(D)}\ 5\text{ miles}", "D", "5"),
        (r"\textbf{(A)}\ 10\%", "A", "0.1"),
        (r"\textbf{(A)}\ \$4.50", "A", "4.5"),
        (r"\textbf{(B)}\ 1,234", "B", "1234"),
        (r"\textbf{(A)}\ x^2+1", "A", "1+x^2"),
        (r"\textbf{(A)}\ (1,2)", "A", "(1,2)"),
        (r"\textbf{(D)}\ 2 \text{ and } 3", "D", "3, 2"),
        (r"\textbf{(C)}\ 1 \pm \sqrt{2}", "C", r"1 \pm \sqrt 2"),
        (r"\text{(C) Tuesday}", "C", r"\text{Tuesday}"),
        ("(a) 5", "a", "5"),
    ],
)
def test_options_may_have_any_value(reference, letter, value):
    assert is_right(reference, letter) and is_right(reference, value) and is_right(reference, f"({letter}) {value}")
    assert is_right(letter, reference) and is_right(value, reference)
    assert not is_right(reference, "H") and not is_right(reference, "77") and not is_right(reference, f"(H) {value}")


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("(A)(B)", "AB", "A"),
        ("(B)^2", "B^2", "B"),
        ("(C) + 3", "3 + C", "C"),
        ("420B", "420B", "B"),
        ("C: x^2 + y^2 = 1", "C: x^2 + y^2 = 1", "C"),
        ("P (A)", "P(A)", "A"),
        ("(C) A", "C", "A"),
        ("B", "(B) 420", "(B) C"),
        ("B", "(B) 420", "(B), (C)"),
        ("B", r"\text{B}", r"\text{B is wrong}"),
        ("B", r"\text{B}", r"\text{B or C because}"),
    ],
)
def test_products_sums_curves_and_hedges_are_no_options(reference, right, wrong):
    assert is_right(reference, right) and not is_right(reference, wrong)


def test_an_implication_is_no_option():
    assert not is_right(r"A \Rightarrow B", "B") and is_right(r"420 \Rightarrow B", "B")


def test_options_with_values_are_rewarded():
    answers = ["B", "420", "420B", r"\textbf{(B) } 420", r"\textbf{(C) } 420"]
    texts = [rf"\boxed{{{answer}}}" for answer in answers]
    assert accuracy([""] * 5, texts, [r"\textbf{(B) } 420"] * 5) == [1.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "label",
    [
        *("AB", "|S|", "f(1)+f(2)", "E[X]", "a^2+b^2", "E(X)", r"\mathbb{E}[X]", r"\operatorname{Var}(X)", "P(A)+P(B)"),
        *(r"|A\cup B|", "[ABC]", r"\angle PQR", r"m\angle PQR", r"\overline{AB}", "|AB|", r"|\vec{a}|", "|z|", "|a-b|"),
        *("f(f(1))", "f^{-1}(3)", "f'(1)", r"\gcd(a,b)", r"\det A", r"\max(a,b)", r"\int_0^5 2x\,dx", r"\#S", "n(A)"),
        *(r"\lim_{x\to 5} x^2", r"\sum_{k=1}^5 (2k-1)", "xy", "p+q", r"\frac{a}{b}", "x_1+x_2", r"\alpha+\beta", "mn"),
        *("AB+BC", r"AB\cdot CD", "PQ^2+QR^2", r"A=\pi r^2", "S = ab", "x = y", r"\sigma^2", r"\vec{a}\cdot\vec{b}"),
        *("a^2+b^2=9+16", r"\sqrt{a^2+b^2}", r"\text{Area}", r"S_{\triangle ABC}", r"I = \int_0^5 2x\,dx"),
    ],
)
def test_a_quantity_before_a_sign_is_a_label(label):
    assert is_right("25", f"{label} = 25") and not is_right("25", f"{label} = 26")
    assert not is_right("25", f"{label} = 25 = 26")


@pytest.mark.parametrize(
    "answer",
    [
        *("2x=25", "x^2=25", "x+1=25", "AB^2=25", "2AB=25", "x^2+x=25", "|x|=25", r"\sqrt{x}=25", "n(n+1)=25"),
        *("2f(1)=25", "f(1)^2=25", "p(1-p)=25", "e^x=25", r"2\pi r=25", r"\frac{x}{2}=25", "-x=25", "n!=25"),
        *(r"\log_2 x=25", r"\lfloor x \rfloor=25", "x+x=25", "1+1=25", "x+y>25", "x+y=25+z", r"x+y\ne 25"),
        *("x+y=25, x-y=1", r"x+y=24 \text{ or } 25", r"x+y\approx 25", "y=25-x", "36 because 30+y=25", "41 so y = 25"),
        *("p+q=24=25", "p+q=25=26"),
    ],
)
def test_an_equation_in_one_unknown_is_no_label(answer):
    assert not is_right("25", answer)


def test_a_labelled_chain_is_right_if_its_values_are_the_same():
    assert is_right("167", "p+q = 120+47 = 167")
    assert verify(("167", "p+q = 41+47 = 167")) == ("unverifiable", "a chain of different values")


@pytest.mark.parametrize("reference", ["x^2+y^2=25", "x+y=25", "|x|=25", "xy=25"])
def test_the_right_side_of_a_reference_equation_is_wrong(reference):
    assert is_right(reference, reference) and not is_right(reference, "25")


def test_names_in_reference_answers_may_be_left_out():
    for reference in ("AB=25", "|S|=25", "E[X]=25", "f(1)+f(2)=25", "[ABC]=25"):
        assert is_right(reference, "25") and not is_right(reference, "26") and not is_right(reference, "x=25")


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (r"90-3\beta", r"90^\circ-3\beta", r"90^\circ+3\beta"),
        (r"90^\circ-3\beta", r"90-3\beta", r"91-3\beta"),
        (r"90^\circ-3\beta", r"\frac{\pi}{2}-3\beta", r"\pi-3\beta"),
        (r"90^\circ-3\beta", r"(90-3\beta)^\circ", r"90^\circ-3"),
        (r"180^\circ-2\alpha", r"180-2\alpha\text{ degrees}", r"180^\circ"),
        (r"\frac{360^\circ}{11}", r"\frac{360}{11}", r"\frac{360^\circ}{12}"),
        (r"\frac{360}{11}", r"\frac{360^\circ}{11}", r"\frac{11^\circ}{360}"),
        (r"30^\circ+k\cdot 180^\circ", "30+180k", "30+90k"),
        (r"\sin 30^\circ", r"\frac{1}{2}", r"\sin 30"),
        (r"\sin 30", r"\sin(30)", r"\sin 30^\circ"),
    ],
)
def test_degree_signs_inside_may_be_left_out_but_not_in_functions(reference, right, wrong):
    assert is_right(reference, right) and not is_right(reference, wrong)


@pytest.mark.parametrize(
    "ordinal",
    [
        *(r"7^{\mathrm{th}}", r"7^{\text{th}}", r"7^\text{th}", "7^{th}", "7th", "7-th", "7TH", "7ᵗʰ", r"7\text{th}"),
        *(r"7\text{-th}", r"7^{\rm th}", r"7^{\textrm{th}}", r"7^{\textit{th}}", r"7^{\mbox{th}}", r"7\mathrm{th}"),
        *(r"7\textsuperscript{th}", r"\text{7th}", r"7$^{\text{th}}$", r"7^{\text{th}}\text{ floor}", "the 7^{th}"),
    ],
)
def test_ordinals_are_numbers(ordinal):
    assert is_right("7", ordinal) and is_right(ordinal, "7") and is_right(ordinal, r"7^{\text{th}}")
    assert not is_right("8", ordinal) and not is_right(ordinal, "8")


def test_ordinals_have_their_own_endings_and_powers_stay_powers():
    for number, ordinal in (("21", r"21^{\text{st}}"), ("2", "2^{nd}"), ("12", r"12^{\text{th}}"), ("3", "3^{rd}")):
        assert is_right(number, ordinal)
    for number, power in (("7", "7^{t}"), ("3", "3^{nd}"), ("5", r"5^{\text{st}}"), ("6", r"3 \cdot 2^{nd}")):
        assert not is_right(number, power)


@pytest.mark.parametrize(
    "number",
    [
        *("12 750", r"12\,750", r"12\ 750", "12~750", r"12\;750", r"12\:750", r"12\thinspace 750", "x = 12 750"),
        *("12\u202f750", "12\u00a0750", "12\u2009750", r"\$12 750", r"12 750\text{ m}", "12 750.0", r"\text{12 750}"),
    ],
)
def test_spaces_separate_thousands(number):
    assert is_right("12750", number) and is_right(number, "12,750")
    assert not is_right("750", number) and not is_right("12", number) and not is_right(number, "12751")


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        *(("42", "4 2"), ("1275", "12 75"), ("0100", "0 100"), ("12750", "12, 750"), ("12, 750", "12 750")),
        *(("1100/101", "1 100/101"), ("1100/101", r"1\,100/101"), ("x^{2100}", "x^2 100"), ("x^{2100}", r"x^2\,100")),
    ],
)
def test_other_spaces_separate_no_thousands(reference, answer):
    assert not is_right(reference, answer)


def test_spaced_thousands_are_read_in_context():
    for one, other in (("1 100/101", "201/101"), ("-12 750", "-12750"), ("(1 000, 2)", "(1000, 2)")):
        assert is_right(one, other)
    assert is_right(r"\frac{1 000}{3}", r"\frac{1000}{3}") and is_right("1234567", "1 234 567")


def test_emphasis_is_no_power():
    assert is_right("41", "18 + 23 = **41**") and not is_right("41", "18 + 23 = **42**") and is_right("32", "2**5")
    assert not is_right("2x + 2y", "x **2 + y** 2")

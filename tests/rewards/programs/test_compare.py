"""When a value or an output matches the expected one."""

import pytest

from rewards.programs.compare import same_output, same_value


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (10**17 + 1, 1e17, False),
        ((1, [2]), [1, (2,)], True),
        ({1: [1]}, {1: (1,)}, True),
        ({True: 1}, {1: 1}, False),
        ({1: {-2: 3}}, {"1": {"-2": 3}}, True),
        ({"1": 2}, {1: 2}, False),
        ({1: 2, "1": 2}, {"1": 2, "2": 2}, False),
        ({1: 2, "1": 2}, {"1": 2, 1: 2}, True),
        ({1: 2}, {"01": 2}, False),
        ({True: 2}, {"1": 2}, False),
        ({10**5000: 2}, {"1": 2}, False),
        ({1}, {True}, False),
        ("1", 1, False),
        ([1], [1, 2], False),
    ],
)
def test_values_are_compared_by_exact_type(got, wanted, same):
    assert same_value(got, wanted) is same


@pytest.mark.parametrize(
    ("got", "wanted", "tolerance", "same"),
    [
        (2, 2.0, 0.0, True),
        (True, 1, 0.0, False),
        (10**17 + 1, 1e17, 0.0, False),
        (0.1 + 0.2, 0.3, 0.0, False),
        (1000001, 1000000, 1e-5, False),
        ([1000001.0], [1000000], 1e-5, True),
    ],
)
def test_numbers_are_compared_within_a_tolerance(got, wanted, tolerance, same):
    assert same_value(got, wanted, tolerance) is same


@pytest.mark.parametrize(
    ("got", "wanted", "tolerance", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", None, True),
        ("1 2\n\n3\n", "1 2\n3", None, False),
        ("1\n\n\n", "1", None, True),
        ("\n \n1\n", "\n1", None, True),
        ("1.0", "1.00", None, False),
        ("1.0000001", "1", 1e-6, True),
        ("nan", "nan", 1e-6, False),
        ("inf", "1", 1e-6, False),
        ("yes", "YES", None, False),
        ("2 x 1e1", "2.0 x 10", 0.0, True),
        ("100000000000000001", "100000000000000000", 0.0, False),
        ("0.30000000000000004", "0.3", 0.0, False),
        ("nan", "nan", 0.0, True),
        ("NaN", "nan", 0.0, False),
        ("sNaN", "1", 0.0, False),
        ("1000001", "1000000", 1e-5, False),
        ("1000000.5", "1000000", 1e-5, True),
        ("inf", "1" * 400, 1e-6, False),
        ("1e999", "1" * 400, 1e-6, False),
        ("1" * 400 + ".0", "1" * 400, 1e-6, True),
        ("11", "0011", 1e-6, False),
        ("1e99999999", "1", 1e-6, False),
        ("", "", None, True),
    ],
)
def test_output_is_compared_word_by_word(got, wanted, tolerance, same):
    assert same_output(got, wanted, tolerance) is same

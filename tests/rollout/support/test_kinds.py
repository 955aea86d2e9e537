"""Values from YAML where a function declares a type."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from rollout.support.kinds import misfit

Level = Literal["bubblewrap", "none"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, bool),
        (3, int),
        (3, float),
        (0.5, float | None),
        (None, float | None),
        ("none", Level | None),
        (["en", None], str | Sequence[str | None]),
        ({"a": 1}, Mapping[str, int]),
        ([1, "b"], list),
        (object(), Any),
        ("text", object),
    ],
)
def test_what_a_function_declares_fits(value: Any, kind: Any) -> None:
    assert misfit(value, kind) is None


@pytest.mark.parametrize(
    ("value", "kind", "rule"),
    [
        ("no", bool, "must be true or false. YAML 1.2 reads yes, no, on and off as text."),
        (1, bool, "must be true or false."),
        (True, int, "must be an integer."),
        (5.5, int, "must be an integer."),
        ("1000", int, "must be an integer. Write it without quotes."),
        (True, float, "must be a number."),
        ("-1", float | None, "must be a number or null. Write it without quotes."),
        (7, str, "must be text."),
        ("bwrap", Level | None, "must be one of bubblewrap, none or null. Did you mean 'bubblewrap'?"),
        ("en", list[str], "must be a list."),
        ([1], list[str], "must be a list."),
        ({"a": "1"}, Mapping[str, int], "must be a mapping."),
    ],
)
def test_what_does_not_fit_is_told_the_rule_and_what_was_meant(value: Any, kind: Any, rule: str) -> None:
    assert misfit(value, kind) == rule

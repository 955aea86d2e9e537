"""docs/reference.md says what the recipe classes say."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_reference_is_in_step_with_the_recipe_classes():
    written = runpy.run_path(str(DOCS / "reference.py"))["page"]()
    assert (DOCS / "reference.md").read_text() == written, "run `python docs/reference.py`"


def test_a_key_has_its_value_default_and_comments():
    rows = (DOCS / "reference.md").read_text().splitlines()
    assert "| `num_generations` | integer ≥ 2 | `16` | completions per problem (G) |" in rows
    assert any(row.startswith("| `entropy_target` | number > 0 or null | `null` | nats per token") for row in rows)
    (routing,) = [row for row in rows if row.startswith("| `routing_replay`")]  # its comment stands above the field
    assert routing.endswith("the engine's (R3); [moe.md](moe.md) |")
    (steps,) = [row for row in rows if row.startswith("| `learning_rate` | number > 0 | `5e-05`")]
    assert "R1: 5e-5 for V3" in steps  # overrides a parent's field

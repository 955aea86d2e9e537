"""Dead experts, a load that drifts apart, and routes that do not arrive."""

from pathlib import Path

from tests.grpo.report.diagnosis.made import made, only, shown

EVEN = [0.25, 0.25, 0.25, 0.25]


def test_dead_experts_are_named(tmp_path: Path) -> None:
    rows = [{}] + [{"moe/load": [EVEN, [0.5, 0.5, 0.0, 0.0]]}] * 10
    assert shown(only(made(tmp_path, rows))) == (
        "alarm",
        "2 of 8 experts received no token in the last 10 rows (layer.expert: 2.2, 2.3), so they do not learn.",
        "moe/load 2; rule: experts with a share of 0 in 10 rows in a row",
        "steps 2–11",
        "model.sequence_balance_coefficient=0.0001",
    )


def test_experts_without_tokens_now_and_then_are_not_dead(tmp_path: Path) -> None:
    rows = [{"moe/load": [EVEN, [0.5, 0.5, 0.0, 0.0] if i % 2 else [0.0, 0.0, 0.5, 0.5]]} for i in range(12)]
    assert made(tmp_path, rows).findings == []


def test_load_drifts_apart(tmp_path: Path) -> None:
    worse = {"moe/load_max_violation": 1.5, "moe/load": [[0.625, 0.125, 0.125, 0.125], EVEN]}
    assert shown(only(made(tmp_path, [{}] * 5 + [worse] * 5, model={"balance_bias_update_speed": 1e-3}))) == (
        "note",
        "The experts' load drifts apart: the busiest expert of a layer has 2.5 times its share, at first 1.1; most in "
        "layer 1, expert 0.",
        "moe/load_max_violation 1.5; rule: mean of 5 rows above 1 and 2 times that of the first 5",
        "steps 6–10",
        "",
    )


def test_what_adapters_refuse_is_not_suggested(tmp_path: Path) -> None:
    rows = [{}] + [{"moe/load": [EVEN, [0.5, 0.5, 0.0, 0.0]]}] * 10
    assert only(made(tmp_path, rows, model={"lora": {"r": 4}})).overrides == ""


def test_replay_without_routes(tmp_path: Path) -> None:
    rows = [{"moe/replay_missing_ratio": 1.0}] * 5
    assert shown(only(made(tmp_path, rows)))[:3] == (
        "alarm",
        "100% of the tokens had no experts to replay and were routed anew: routing replay hardly happens.",
        "moe/replay_missing_ratio 1; rule: mean of 5 rollouts above 0.5",
    )
    assert made(tmp_path / "few", [{"moe/replay_missing_ratio": 0.2}] * 5).findings == []

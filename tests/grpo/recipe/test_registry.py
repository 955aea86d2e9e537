"""What a recipe's stage says of itself."""

from grpo.recipe.registry import STAGES


def test_with_which_setting_an_interrupted_run_goes_on() -> None:
    from_checkpoint = "trainer.resume_from_checkpoint"
    assert {name: stage.resume for name, stage in STAGES.items()} == {
        "grpo": from_checkpoint,
        "opd": from_checkpoint,
        "pretrain": from_checkpoint,
        "sft": from_checkpoint,
        "rejection": "resume",
        "pairs": "resume",
        "reward_model": from_checkpoint,
        "eval": "",
        "held_out": "",
        "pipeline": "",
    }

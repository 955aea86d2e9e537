"""What a recipe's stage says of itself."""

import pytest
from pydantic import ValidationError

from grpo.evaluation.config import EngineConfig, SamplingConfig
from grpo.recipe.registry import STAGES
from grpo.recipe.section import Section
from grpo.recipe.stages.held_out import HeldOutRollout
from grpo.recipe.stages.preference import CandidateConfig


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


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (SamplingConfig, "top_p"),
        (EngineConfig, "gpu_memory_utilization"),
        (HeldOutRollout, "top_p"),
        (CandidateConfig, "top_p"),
    ],
)
def test_no_stage_samples_from_nothing(section: type[Section], key: str) -> None:
    """vLLM would refuse it at the first completion."""
    with pytest.raises(ValidationError, match=f"{key}\n  Input should be greater than 0"):
        section.model_validate({key: 0})

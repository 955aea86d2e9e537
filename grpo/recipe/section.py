"""What every section of a recipe, and every whole recipe, has in common; and a section that several stages have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Endpoint(Section):
    """A model behind an OpenAI-compatible endpoint, such as vLLM's server, and how it is asked."""

    model: str
    base_url: str | None = None  # such as http://host:8000/v1; None: OpenAI's
    max_tokens: PositiveInt = 1024  # of an answer
    temperature: NonNegativeFloat = 0.0
    max_concurrency: PositiveInt = 8  # requests at once
    max_retries: NonNegativeInt = 6  # of a request, with growing pauses
    timeout: PositiveFloat = 120.0  # seconds a request may wait for data
    api_key_env: str = "OPENAI_API_KEY"  # environment variable with the key; your own server often needs none


class StageRecipe(Section):
    """A whole recipe: what one stage needs. It says where the stage writes, and whether it continues what is there.

    By default these are fields of a section `trainer`; a stage that trains nothing overrides the properties.
    """

    stage: str

    @property
    def output_dir(self) -> Path:
        """The folder the stage writes to."""
        return Path(self._trainer.output_dir)

    @property
    def resume_from_checkpoint(self) -> bool | str:
        """True: continue the stage in `output_dir`; a path: from this checkpoint."""
        return getattr(self._trainer, "resume_from_checkpoint", False)

    @property
    def allow_changes(self) -> Sequence[str]:
        """Keys that may differ from the recipe of the run that is continued."""
        return getattr(self._trainer, "allow_changes", ())

    def in_folder(self, folder: Path) -> Self:
        """The same recipe, writing to another folder."""
        return self.model_copy(update={"trainer": self._trainer.model_copy(update={"output_dir": str(folder)})})

    @property
    def _trainer(self) -> Any:
        return self.trainer  # type: ignore[attr-defined]


class FolderRecipe(StageRecipe):
    """A stage that trains nothing: where it writes and its seed are keys of the recipe itself. It does not resume."""

    output: str  # the folder
    seed: NonNegativeInt = 42  # of sampling, order and new weights

    @property
    def output_dir(self) -> Path:
        return Path(self.output)

    @property
    def resume_from_checkpoint(self) -> bool | str:
        return False

    @property
    def allow_changes(self) -> Sequence[str]:
        return "output", "resume"

    def in_folder(self, folder: Path) -> Self:
        return self.model_copy(update={"output": str(folder)})


class SamplingRecipe(FolderRecipe):
    """A stage that samples. By default it continues what is in its folder."""

    resume: bool = True  # false: start over, in another folder if this one is in use

    @property
    def resume_from_checkpoint(self) -> bool | str:
        return self.resume

"""What every section of a recipe, and every whole recipe, has in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
    seed: NonNegativeInt = 42

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

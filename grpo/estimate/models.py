"""The configurations of the models that recipes name, without their weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from grpo.estimate.shape import MTP, ModelShape, measure_shape
from grpo.recipe.load import RecipeError
from grpo.recipe.loop.lora import LoRAConfig
from grpo.recipe.section import StageRecipe
from grpo.recipe.stages.preference import PairsRecipe
from grpo.recipe.stages.rejection import RejectionRecipe
from grpo.recipe.stages.sft import SFTModel, SFTRecipe
from grpo.stages.pipeline.graph import PREFIX
from rollout.engines.base import load_tokenizer
from rollout.support.loading import load_object


class UnknownModelError(ValueError):
    """A model whose configuration is not there yet: not on the Hub or out of reach, or made by an earlier run."""


class Models:
    """Models by name, and in a pipeline by the stage that makes them.

    stages: the pipeline's recipes by name, in which "stage:NAME" stands for what stage NAME makes.
    """

    def __init__(self, stages: Mapping[str, StageRecipe] | None = None) -> None:
        self.stages = stages or {}
        self._found: dict[str, PretrainedConfig | UnknownModelError] = {}
        self._shapes: dict[tuple[str, int, int, int, str], ModelShape] = {}

    def of_recipe(self, recipe: StageRecipe) -> PretrainedConfig:
        """The model that a stage trains or samples: that of the stage it starts from, with its own changes.

        Raises:
            RecipeError: a local folder holds no configuration.
            UnknownModelError: it cannot be known now.
        """
        section: Any = recipe.model  # type: ignore[attr-defined]
        if isinstance(recipe, SFTRecipe) and section.model_name_or_path is None:
            return _from_nothing(section, Path(recipe.base_dir))
        revision, trust = getattr(section, "revision", None), getattr(section, "trust_remote_code", False)
        config = self.named(section.model_name_or_path, revision, trust_remote_code=trust)
        if changes := getattr(section, "config", {}):
            config = type(config).from_dict({**config.to_dict(), **changes})
        return config

    def named(self, name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> PretrainedConfig:
        """The configuration of a folder, a Hub name or "stage:NAME". Raises as `of_recipe` does."""
        if name.startswith(PREFIX):
            return self.of_recipe(self.stages[name.removeprefix(PREFIX)])
        key = f"{name}@{revision}"
        if key not in self._found:
            self._found[key] = _read(name, revision, trust_remote_code)
        found = self._found[key]
        if isinstance(found, UnknownModelError):
            raise found
        return found

    def shape(
        self,
        config: PretrainedConfig,
        *,
        rows: int = 0,
        length: int = 0,
        width: int = 4,
        lora: LoRAConfig | None = None,
        quantization: str | None = None,
        mtp: MTP | None = None,
    ) -> ModelShape:
        """`measure_shape`, once for the same arguments."""
        key = (json.dumps(config.to_dict(), default=str), rows, length, width, repr((lora, quantization, mtp)))
        if key not in self._shapes:
            of_model = {"lora": lora, "quantization": quantization, "mtp": mtp}
            self._shapes[key] = measure_shape(config, rows=rows, length=length, width=width, **of_model)
        return self._shapes[key]

    def rows(self, dataset: str) -> int | None:
        """The most rows that a dataset can have, if a stage makes it; None: unknown without reading it."""
        match self.stages.get(dataset.removeprefix(PREFIX)) if dataset.startswith(PREFIX) else None:
            case RejectionRecipe() as stage:
                kept = min(stage.rollout.num_generations, stage.select.max_per_problem or stage.rollout.num_generations)
                return stage.rollout.num_problems * kept
            case PairsRecipe() as stage:
                return stage.pairs.num_problems * stage.pairs.pairs_per_problem
        return None


def _read(name: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig | UnknownModelError:
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        message = f"model_name_or_path={name!r}: no configuration found ({reason})."
        if Path(name).is_absolute():  # as `./` is by now
            raise RecipeError(
                f"{message} It must be a folder with config.json (`./` is the recipe's folder) or a Hub name."
            ) from None
        return UnknownModelError(message)


def _from_nothing(section: SFTModel, base_dir: Path) -> PretrainedConfig:
    """As the stage builds it: the vocabulary is the tokenizer's, unless the recipe sets it."""
    size = section.config.get("vocab_size")
    if size is None:
        assert section.tokenizer
        try:
            if ".py:" in section.tokenizer:
                size = len(load_object(section.tokenizer, kind="model.tokenizer", base_dir=base_dir)())
            else:
                size = len(load_tokenizer(section.tokenizer, revision=None, trust_remote_code=False))
        except OSError as error:
            raise UnknownModelError(f"model.tokenizer={section.tokenizer!r}: {str(error).splitlines()[0]}") from None
    return AutoConfig.for_model(**{**section.config, "vocab_size": size})

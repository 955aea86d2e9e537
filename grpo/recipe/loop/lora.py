"""Sections of a policy that trains low-rank adapters instead of its weights. Applied in `grpo.model.adapters`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from grpo.recipe.section import Section

Names = list[Annotated[str, Field(min_length=1)]]


class LoRAConfig(Section):
    """LoRA (2106.09685): the fields of `peft.LoraConfig` that this toolkit trains, saves and samples from."""

    r: PositiveInt = 16  # rank
    lora_alpha: PositiveFloat = 32  # the update is scaled by lora_alpha / r
    lora_dropout: NonNegativeFloat = 0.0  # only 0
    target_modules: str | Names = "all-linear"  # ends of module names, a regular expression, or "all-linear"
    target_parameters: Names = []  # ends of parameter names: experts are 3-D parameters in transformers 5
    exclude_modules: str | Names = []
    modules_to_save: Names = []  # trained whole, and saved with the adapters
    use_rslora: bool = False  # scaled by lora_alpha / sqrt(r) (2312.03732)
    use_dora: bool = False  # magnitude and direction apart (2402.09353)
    bias: Literal["none", "all", "lora_only"] = "none"
    # peft's other ways change the base, or need data
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True

    @model_validator(mode="after")
    def _peft_can(self) -> Self:
        if not self.target_modules and not self.target_parameters:
            raise ValueError("nothing is adapted: set target_modules or target_parameters.")
        if self.lora_dropout:
            raise ValueError(
                f"lora_dropout={self.lora_dropout}: engines sample without dropout, and a ratio of two log-probs would "
                "be that of two random masks. Set lora_dropout=0."
            )
        if self.target_parameters and self.use_dora:
            raise ValueError(
                f"target_parameters={self.target_parameters} with use_dora=true: peft has no DoRA for parameters. Set "
                "use_dora=false, or leave target_parameters empty."
            )
        return self

    def peft_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `peft.LoraConfig`."""
        return self.model_dump()


def quantization_conflicts(quantization: str | None, lora: LoRAConfig | None, *, sharding: str) -> Iterator[str]:
    """What the rest of a recipe must not say with a quantized base."""
    if quantization is None:
        return
    if lora is None:
        yield (
            f"model.quantization={quantization} without model.lora: quantized weights cannot be trained. Set "
            "model.lora, such as {r: 16}, or remove quantization."
        )
    if sharding != "none":
        yield (
            f"model.quantization={quantization} with trainer.sharding={sharding}: quantized weights are not divided "
            "over processes. Set sharding=none, or remove quantization."
        )
    if lora and lora.bias != "none":
        yield (
            f"model.quantization={quantization} with model.lora.bias={lora.bias}: bitsandbytes rounds biases to the "
            "precision it computes in, also trained ones. Set bias=none."
        )


def sending_conflicts(
    lora: LoRAConfig | None, quantization: str | None, engine: str, sleep_level: int, transfer: str | None
) -> Iterator[str]:
    """What a recipe must not say with adapters that vLLM is to apply itself; transfer: `rollout.servers.weights`."""
    if lora is None:
        yield "rollout.adapters=send without model.lora: there are no adapters. Set model.lora, or adapters=merge."
        return
    refused = {
        "model.lora.use_dora=true: vLLM has no DoRA": lora.use_dora,
        f"model.lora.bias={lora.bias}: vLLM takes no biases": lora.bias != "none",
        f"model.lora.modules_to_save={lora.modules_to_save}: vLLM takes no whole modules": lora.modules_to_save,
        f"model.lora.target_parameters={lora.target_parameters}: vLLM takes adapters of modules only": (
            lora.target_parameters
        ),
        f"model.quantization={quantization}: the engine's base is not quantized": quantization,
        f"rollout.engine={engine}: only vLLM applies adapters itself": engine == "hf",
        "rollout.sleep_level=2: the engine drops its base, which is not sent again": sleep_level == 2,
        "rollout.servers.weights=nccl: adapters are sent as files": transfer == "nccl",
    }
    for conflict in (conflict for conflict, found in refused.items() if found):
        yield f"rollout.adapters=send with {conflict}. Set rollout.adapters=merge, or change the other."


def lora_conflicts(lora: LoRAConfig, balance_bias_update_speed: float, *, beta: float) -> Iterator[str]:
    """What the rest of a recipe must not say with adapters."""
    if balance_bias_update_speed:
        yield (
            f"model.balance_bias_update_speed={balance_bias_update_speed} with model.lora: the balance bias belongs to "
            "the base, and adapters are saved without it. Set it to 0."
        )
    if lora.bias != "none" and beta:
        yield (
            f"model.lora.bias={lora.bias} with algorithm.beta={beta}: the reference is the policy with its adapters "
            "off, which would keep the trained biases. Set bias=none or beta=0."
        )

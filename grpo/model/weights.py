"""A model's weights under the names they have on disk."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpo.model.adapters import has_adapters, merged_weights


def checkpoint_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) as in the model's checkpoint folder, in the layout that rollout engines load.

    transformers fuses the experts of a layer into `experts.gate_up_proj [E, 2I, H]` and `experts.down_proj [E, H, I]`;
    checkpoints, and with them vLLM, have `experts.{e}.gate_proj.weight [I, H]` and so on. Buffers that a checkpoint
    holds are included (DeepSeek-V3's `e_score_correction_bias`), tied weights come once.

    The tensors are detached and mostly views of the parameters: use them before the next optimizer step.
    Adapters are merged, a layer at a time, into copies. Not for sharded models, nor for wrapped ones (unwrap first).
    """
    if has_adapters(model):
        yield from merged_weights(model)
        return
    tied = model.all_tied_weights_keys
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    yield from revert_weight_conversion(model, weights).items()

"""What is checked about a model before it trains, so that nothing wrong is found at step 40, or never.

Each check raises a ValueError of one sentence with value, rule and remedy.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from grpo.model.forward.mtp import mtp_prefix
from grpo.model.load import CompletionLogProbs
from grpo.model.moe import has_balance_bias, moe_layers, record_routes
from grpo.model.sharding import computing, in_parts, local
from grpo.recipe.errors import NonFiniteError
from rollout.engines.base import check_context

HEAD_TOLERANCE = 1e-3  # nats; in float32 the two computations agree to 1e-5
LATER_TOLERANCE = 0.05  # nats; tokens that share an expert may change how its product is rounded
# Tokens of the row that is compared. DeepSeek-V4 compresses 128 into one, with weights that fewer do not reach.
SHORTEST, LONGEST = 9, 160


def check_model(
    model: PreTrainedModel,
    *,
    tokenizer_size: int,
    max_model_len: int,
    balance_bias_update_speed: float = 0.0,
    sequence_balance_coefficient: float = 0.0,
    disable_dropout: bool = True,
) -> None:
    """Raise unless this toolkit can train the model right; freeze the parameters that text never reaches.

    Args:
        tokenizer_size: entries of the tokenizer, added tokens included.
        max_model_len: tokens of the longest sequence, prompt and completion together.
        disable_dropout: nothing may be random in training.
    """
    check_finite(model)
    check_vocabulary(model, tokenizer_size)
    check_context(model.config, max_model_len)
    check_balance(model, "model", balance_bias_update_speed, sequence_balance_coefficient)
    check_rotary(model.config, max_model_len)
    reached = _check_head(model, max_model_len, as_trained=disable_dropout)
    _freeze_unreached(model, reached)


def check_vocabulary(model: PreTrainedModel, tokenizer_size: int) -> None:
    """Raise ValueError unless every token has an embedding."""
    if tokenizer_size > (rows := _num_embeddings(model)):
        raise ValueError(
            f"{model.config.name_or_path}: the tokenizer has {tokenizer_size} entries and the embedding {rows} rows, "
            "so a token would have no embedding. Resize the embedding (model.resize_token_embeddings) or use the "
            "model's own tokenizer."
        )


def check_rotary(config: PretrainedConfig, max_model_len: int) -> None:
    """Raise ValueError if positions mean something else beside a longer sequence, so that log-probs depend on batches.

    transformers takes the frequencies of a whole forward from its longest sequence.
    """
    text: Any = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for own in (rope, *(kind for kind in rope.values() if isinstance(kind, dict))):  # of all layers, or of each kind
        if (kind := own.get("rope_type")) not in ("longrope", "dynamic"):
            continue
        limit = own["original_max_position_embeddings"] if kind == "longrope" else text.max_position_embeddings
        if max_model_len > limit:
            raise ValueError(
                f"max_model_len={max_model_len}: beyond {limit} tokens, rope_type={kind} of the model's config.json "
                "turns all sequences of a forward by the longest of them, so log-probs would depend on what is trained "
                f"together. Lower max_model_len, or the longest prompt plus completion, to at most {limit}."
            )


def leaves_weights_out(config: PretrainedConfig) -> bool:
    """Whether short rows do not reach all weights: DeepSeek-V4's compressors, of 128 tokens each."""
    return "heavily_compressed_attention" in (getattr(config.get_text_config(), "layer_types", None) or ())


def refuse_not_finite(logs: Mapping[str, Any], step: int) -> None:
    """Raise NonFiniteError if a row of transformers' trainer has a loss or a gradient that is not finite."""
    for name in ("loss", "grad_norm"):
        if name in logs and not math.isfinite(logs[name]):
            raise NonFiniteError(
                f"step {step}: {name} is {logs[name]}. Lower trainer.learning_rate, or resume from a checkpoint "
                "before it."
            )


def _num_embeddings(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.shape[0]


def check_balance(
    model: PreTrainedModel, section: Literal["model", "trainer"], bias_update_speed: float, coefficient: float
) -> None:
    """Raise where the model's experts cannot be balanced in the ways that the recipe's section asks for."""
    name = f"{model.config.name_or_path} ({model.config.model_type})"
    if bias_update_speed and not has_balance_bias(model):
        raise ValueError(
            f"{section}.balance_bias_update_speed={bias_update_speed}: {name} has no router with a balance bias "
            "(DeepSeek-V3's e_score_correction_bias). Set it to 0"
            + (f", and {section}.sequence_balance_coefficient instead." if moe_layers(model) else ".")
        )
    if not coefficient:
        return
    setting = f"{section}.sequence_balance_coefficient={coefficient}"
    if not moe_layers(model):
        raise ValueError(f"{setting}: {name} has no mixture of experts with a `gate` and `experts`. Set it to 0.")
    ids = torch.randint(0, _num_embeddings(model), (1, 32), generator=torch.Generator().manual_seed(0))
    with without_flash(model), computing(model), record_routes(model) as routes, torch.no_grad():
        model.base_model(input_ids=ids.to(model.device), use_cache=False)
    try:
        _ = routes.scores
    except ValueError as error:
        raise ValueError(f"{setting}: {name} has no scores to balance: {error} Set it to 0.") from error


def check_finite(model: nn.Module) -> None:
    """Raise if a weight is NaN or infinite; if the model is sharded, in all processes."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    found = [
        (name, int((~local(tensor).isfinite()).sum()))
        for name, tensor in weights.items()
        if not local(tensor).isfinite().all()
    ]
    if in_parts(model):
        found = gather_object(found)
    if found:
        name, count = found[0]
        raise NonFiniteError(
            f"weight {name} has {count} NaN or infinite values. Use a checkpoint from before they appeared."
        )


def _check_head(model: PreTrainedModel, max_model_len: int, *, as_trained: bool) -> set[int]:
    """Compare our log-probs with those of the model's own forward; returns the ids of the parameters that took part.

    as_trained: ours are computed in training mode, in which nothing may be random.
    """
    name = f"{model.config.name_or_path} ({model.config.model_type})"
    head: Any = model.get_output_embeddings()
    if model.base_model is model or head is None:
        raise ValueError(
            f"{name}: a {type(model).__name__} is not made of a `base_model` and a linear head, so log-probs cannot be "
            "computed from its hidden states. Choose another model."
        )
    vocabulary, length = min(_num_embeddings(model), head.weight.shape[0]), min(max(max_model_len, SHORTEST), LONGEST)
    ids = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    half = length // 2
    continued = torch.cat([ids[:, :half], (ids[:, half:] + 1) % vocabulary], dim=1)  # otherwise
    position_ids = torch.arange(length, device=model.device)[None]
    arguments = ids, position_ids, position_ids[0, :-1], ids[0, 1:]
    parts = in_parts(model)
    with without_flash(model), computing(model):
        model.train(as_trained)
        with torch.set_grad_enabled(not parts):
            ours, _ = CompletionLogProbs(model, 1.0)(*arguments)
        model.eval()
        with torch.no_grad():
            theirs = _own_logprobs(model, ids)
            difference = float((ours.detach() - theirs).abs().max())
            agrees = difference <= HEAD_TOLERANCE
            again = theirs if agrees else CompletionLogProbs(model, 1.0)(*arguments)[0]  # is it the mode?
            change = float((_own_logprobs(model, continued) - theirs)[: half - 1].abs().max())
    if change > LATER_TOLERANCE:
        raise ValueError(
            f"{name}: the log-prob of a token changes by {change:.2g} with those after it, so it does not generate "
            "from left to right. Set is_decoder in its config.json if it has that, or choose another model."
        )
    if not agrees and float((again - theirs).abs().max()) <= HEAD_TOLERANCE:
        raise ValueError(
            f"{name}: its forward is random in training mode, as with router_jitter_noise or a dropout that it reads "
            "from its config.json, so equal weights would give other log-probs. Set these rates to 0 there, or choose "
            "another model."
        )
    if not agrees:
        raise ValueError(
            f"{name}: log-probs from its hidden states and its head differ by {difference:.2g} from those of its own "
            "forward: its logits are not a linear head's (as with final_logit_softcapping), and gradients would be "
            "wrong. Choose another model."
        )
    # FSDP waits for no gradient, and parts are in no graph yet.
    return {id(parameter) for parameter in (model.parameters() if parts else _leaves(ours))}


def _own_logprobs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[L - 1] of the tokens of a row [1, L] after its first, by the model's own forward."""
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@contextmanager
def without_flash(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, attention works in float32 and on a CPU: the model is not where it trains yet."""
    own = model.config._attn_implementation or ""
    if "flash" in own:
        model.set_attn_implementation("eager")  # which every model has
    yield
    if "flash" in own:
        model.set_attn_implementation(own)


def _leaves(output: Tensor) -> Iterator[Any]:
    """The parameters in an output's graph."""
    seen, stack = set(), [output.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [following for following, _ in node.next_functions]


def _freeze_unreached(model: PreTrainedModel, reached: set[int]) -> None:
    """Freeze what text never reaches, such as a vision tower: DDP waits for gradients of every parameter.

    Experts may be unreached by a few tokens and be reached by others, so they are never frozen; nor is a multi-token
    prediction, which the trunk's forward does not run.
    """
    draft = mtp_prefix(model)
    for name, parameter in model.named_parameters():
        if id(parameter) not in reached and ".experts." not in name and not (draft and name.startswith(draft)):
            parameter.requires_grad_(False)

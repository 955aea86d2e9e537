"""`grpo drafts`: how often speculative decoding would keep what a model's multi-token prediction drafts.

The model completes problems of a recipe; then one forward over each completion says of every token whether its draft
would have been kept. That is exact, because speculative decoding leaves the distribution of completions as it is
(2211.17192): the prefixes are those at which it would draft.
"""

from contextlib import closing

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from grpo.learner.batch import Sample, unweighted
from grpo.learner.scoring import Batching
from grpo.model.forward.mtp import drafts_of_completions
from grpo.model.load import load_model
from grpo.recipe.config import OnPolicyRecipe
from grpo.stages import parts
from grpo.stages.problems import training_stream
from rollout.engines.base import Engine, load_tokenizer
from rollout.types import Prompt, Sampling

NUM_PROMPTS = 64


def measure_drafts(recipe: OnPolicyRecipe) -> list[str]:
    """One line for greedy decoding and one for sampling at the rollouts' temperature, each on 64 completions.

    Raises:
        ValueError: the model has no multi-token prediction.
    """
    source = (recipe.model.model_name_or_path, recipe.model.revision, recipe.model.trust_remote_code)
    tokenizer, accelerator = load_tokenizer(*source), parts.accelerator(recipe.model)
    model = load_model(recipe.model, mtp="stored").to(accelerator.device).eval()  # type: ignore[arg-type]
    prompts = training_stream(recipe, tokenizer, process_index=0, num_processes=1).first(NUM_PROMPTS)
    batching = Batching(recipe.trainer.max_tokens_per_micro_batch, tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    engine = parts.engine(
        recipe.rollout.engine,
        recipe.rollout,
        recipe.model,
        max_model_len=recipe.max_model_len,
        device=accelerator.device,
        servers=recipe.rollout.servers,
    )
    hot, lines = recipe.rollout.temperature, []
    with closing(engine):
        for index, (how, temperature) in enumerate((("greedy", 0.0), (f"sampled at temperature {hot:g}", hot))):
            sampling = recipe.rollout_sampling(0)
            samples = _completions(engine, prompts, sampling, temperature)
            kept, tokens = acceptance_on(model, samples, batching, accelerator, temperature or 1.0)
            share = kept[index] / max(1, tokens)
            lines.append(f"{how}: {share:.1%} of {tokens:,} drafts kept, {1 + share:.2f} tokens per pass")
    return lines


def _completions(engine: Engine, prompts: list[Prompt], sampling: Sampling, temperature: float) -> list[Sample]:
    sampling = Sampling(
        num_generations=1,
        max_completion_length=sampling.max_completion_length,
        temperature=temperature,
        stop=sampling.stop,
        seed=sampling.seed,
    )
    return unweighted(engine.generate(prompts, sampling))


@torch.no_grad()
def acceptance_on(
    model: PreTrainedModel, samples: list[Sample], batching: Batching, accelerator: Accelerator, temperature: float
) -> tuple[tuple[float, float], int]:
    """((kept by greedy decoding, expected to be kept by sampling), drafts) for the samples' tokens from the second on.

    temperature: of sampling.
    """
    greedy, sampled, tokens = 0.0, 0.0, 0
    for indices in batching.split(samples):
        batch = batching.collate([samples[i] for i in indices], accelerator.device)
        with accelerator.autocast():
            hidden = model.base_model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
            ).last_hidden_state
            drafts = drafts_of_completions(
                model, batch.input_ids, batch.position_ids, hidden, batch.logit_positions, batch.targets, temperature
            )
            first, second = drafts.acceptance()
        greedy, sampled, tokens = greedy + first.item(), sampled + second.item(), tokens + len(drafts.targets)
    return (greedy, sampled), tokens

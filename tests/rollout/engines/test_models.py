"""What an engine reads from a model's folder: end tokens, tokenizer, PAD and the context."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedConfig, SmolLM3Config

from grpo.model.weights import checkpoint_weights
from rollout.engines.base import check_context, end_token_ids, load_tokenizer
from rollout.engines.hf import HFEngine
from rollout.types import Group, Sampling
from tests.conftest import save_tiny, tiny_llama_config, tiny_v4_config
from tests.rollout.engines.agreement import (
    assert_agrees,
    engine_logprobs,
    load,
    make_prompts,
    perturb,
    trainer_logprobs,
)
from tests.rollout.engines.test_engines import start_vllm

SAMPLING = Sampling(num_generations=3, max_completion_length=24)


def start_hf(folder: Path) -> HFEngine:
    return HFEngine(str(folder), dtype="float32", device="cpu", max_num_seqs=12, max_model_len=256)


def tokens(groups: list[Group]) -> dict[str, list[list[int]]]:
    return {g.problem.id: [list(c.token_ids) for c in g.completions] for g in groups}


def with_config(folder: Path, target: Path, **changes) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    return target


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"eos_token_id": [257, 5]}, [5, 257]),
        ({"eos_token_id": None, "text_config": {"eos_token_id": [7, 9]}}, [7, 9, 257]),
        ({"eos_token_id": None}, [257]),  # not LlamaConfig's own default, 2
        ({"eos_token_id": 6}, [6, 257]),
    ],
)
def test_end_tokens_are_those_of_the_tokenizer_and_of_both_configs(
    tiny_llama: Path, tmp_path: Path, changes: dict, ends: list[int]
):
    folder = with_config(tiny_llama, tmp_path / "model", **changes)
    (folder / "generation_config.json").unlink()
    assert end_token_ids(str(folder), load_tokenizer(str(folder), None, False), None) == ends
    (folder / "generation_config.json").write_text('{"eos_token_id": [257, 11]}')
    assert end_token_ids(str(folder), load_tokenizer(str(folder), None, False), None) == sorted({*ends, 11})


def test_a_completion_ends_at_an_end_token_that_only_the_model_config_names(tiny_llama: Path, tmp_path: Path):
    sampling = dataclasses.replace(SAMPLING, num_generations=1)
    prompt = make_prompts(1)
    ((free,),) = (group.completions for group in start_hf(tiny_llama).generate(prompt, sampling))
    third = free.token_ids[2]
    folder = with_config(tiny_llama, tmp_path / "model", eos_token_id=[257, third])
    ((ended,),) = (group.completions for group in start_hf(folder).generate(prompt, sampling))
    end = list(free.token_ids).index(third) + 1
    assert (list(ended.token_ids), ended.finish_reason) == (list(free.token_ids[:end]), "stop")


def test_hf_engine_pads_for_a_tokenizer_without_pad(tiny_llama: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(folder), None, False).pad_token_id is None
    without, with_pad = (start_hf(f).generate(make_prompts(4), SAMPLING) for f in (folder, tiny_llama))
    assert tokens(list(without)) == tokens(list(with_pad))


def test_hf_engine_does_not_pad_what_compresses_windows_of_positions(tmp_path: Path):
    """DeepSeek-V4: four positions padded on the left would be a window of their own."""
    model = load(save_tiny(AutoModelForCausalLM.from_config(tiny_v4_config()), tmp_path))
    engine, prompts = start_hf(tmp_path), make_prompts(4)
    assert len({len(prompt.token_ids) for prompt in prompts}) == 4
    before = list(engine.generate(prompts, SAMPLING))
    assert (trainer_logprobs(model, before) - engine_logprobs(before)).abs().max() < 1e-4
    perturb(model, "layers.1.*weight")
    engine.publish(checkpoint_weights(model), 1)
    after = list(engine.generate(prompts, SAMPLING))
    assert (trainer_logprobs(model, after) - engine_logprobs(after)).abs().max() < 1e-4
    assert (trainer_logprobs(model, before) - engine_logprobs(before)).abs().max() > 1e-2


def with_remote_tokenizer(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    settings = json.loads((target / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizerFast", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizerFast"]}}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    (target / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\nclass OwnTokenizerFast(PreTrainedTokenizerFast): pass\n"
    )
    return target


def test_a_tokenizer_with_remote_code_needs_the_models_permission(tiny_llama: Path, tmp_path: Path):
    folder = with_remote_tokenizer(tiny_llama, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model\.trust_remote_code=false: the tokenizer of .* runs code"):
        start_hf(folder)
    options = {"dtype": "float32", "device": "cpu", "max_num_seqs": 12, "max_model_len": 256}
    engine = HFEngine(str(folder), trust_remote_code=True, **options)
    assert len(list(engine.generate(make_prompts(2), SAMPLING))) == 2
    loaded = load_tokenizer(str(folder), None, True)
    loaded.save_pretrained(tmp_path / "checkpoint")
    assert type(load_tokenizer(str(tmp_path / "checkpoint"), None, True)).__name__ == "OwnTokenizerFast"


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 512),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 1024),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 512,
                }
            },
            2048,
        ),
    ],
)
def test_a_context_beyond_the_models_positions_is_refused(changes: dict, limit: int):
    config = tiny_llama_config()
    for name, value in changes.items():
        setattr(config, name, value)
    check_context(config, limit)
    with pytest.raises(
        ValueError, match=rf"max_model_len={limit + 1}: the model's context is {limit} tokens .*at most {limit}"
    ):
        check_context(config, limit + 1)


@pytest.mark.vllm
@pytest.mark.parametrize("config", [PhiConfig, SmolLM3Config])
def test_a_model_vllm_takes_from_transformers_still_runs_in_the_trainer(config: type[PreTrainedConfig], tmp_path: Path):
    """vLLM decorates the class of such a model, which is the trainer's class too."""
    shape = {
        "vocab_size": 263,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": 257, "pad_token_id": 258}
    save_tiny(AutoModelForCausalLM.from_config(config(**shape, **heads)), tmp_path)
    model = load(tmp_path)
    ids = torch.arange(3, 20)[None]
    before = model(ids).logits
    engine = start_vllm(tmp_path)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(load(tmp_path)(ids).logits, before)  # constructed after the engine
    perturb(model, "layers.1")
    engine.publish(checkpoint_weights(model), 1)
    assert_agrees(model, list(engine.generate(make_prompts(4), SAMPLING)))
    engine.close()

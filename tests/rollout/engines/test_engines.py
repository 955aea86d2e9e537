"""What an engine guarantees: the trainer's log-probs, complete groups, defined ends, reproducible samples."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import (
    DeepseekV3ForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from grpo.model.weights import checkpoint_weights
from rollout.engines.base import Engine
from rollout.engines.hf import HFEngine
from rollout.engines.vllm import VLLMEngine
from rollout.types import Group, Problem, Prompt, Sampling
from tests.conftest import save_tiny, tiny_llama_config, tiny_v3_config
from tests.rollout.engines.agreement import (
    assert_agrees,
    engine_logprobs,
    load,
    make_prompts,
    perturb,
    smallest_margins,
    unexplained,
)

BOS, EOS, PAD = 256, 257, 258
SAMPLING = Sampling(num_generations=3, max_completion_length=24)


def start_vllm(folder: Path, **options) -> VLLMEngine:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    arguments = {"max_model_len": 64, "max_num_seqs": 16, "kv_cache_gib": 0.05, "gpu_memory_utilization": 0.1}
    return VLLMEngine(str(folder), dtype="float32", **arguments | options)


def start_hf(folder: Path) -> HFEngine:
    return HFEngine(str(folder), dtype="float32", device="cpu", max_num_seqs=12, max_model_len=256)


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def shared_engine(request: pytest.FixtureRequest, tiny_v3: Path) -> Engine:
    return start_hf(tiny_v3) if request.param == "hf" else request.getfixturevalue("vllm_v3")


@pytest.fixture
def engine(shared_engine: Engine, tiny_v3: Path) -> Engine:
    shared_engine.publish(checkpoint_weights(load(tiny_v3)), 0)
    return shared_engine


def tokens(groups: list[Group]) -> dict[str, list[list[int]]]:
    return {g.problem.id: [list(c.token_ids) for c in g.completions] for g in groups}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_match_the_trainers(engine: Engine, tiny_v3: Path, temperature: float):
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)
    assert_agrees(load(tiny_v3), list(engine.generate(make_prompts(8), sampling)), temperature)


def test_every_prompt_gets_one_group_of_distinct_samples(engine: Engine):
    prompts = make_prompts(8)
    groups = list(engine.generate(prompts, SAMPLING))
    assert sorted(g.problem.id for g in groups) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    for group in groups:
        assert group.prompt_ids == prompts[int(group.problem.id)].token_ids
        assert len({tuple(c.token_ids) for c in group.completions}) == 3
        assert all(len(c.token_ids) == len(c.logprobs) for c in group.completions)


def test_the_prompts_prefix_reaches_the_group(engine: Engine):
    prompts = [dataclasses.replace(prompt, prefix="<think>\n") for prompt in make_prompts(2)]
    groups = list(engine.generate(prompts, Sampling(num_generations=2, max_completion_length=2)))
    assert [group.completion_prefix for group in groups] == ["<think>\n"] * 2


def test_groups_are_yielded_as_they_finish(engine: Engine):
    stream = engine.generate(make_prompts(12), Sampling(num_generations=4, max_completion_length=30))
    assert isinstance(next(stream), Group)
    stream.close()  # closing frees the engine
    assert len(list(engine.generate(make_prompts(2), SAMPLING))) == 2


def test_samples_depend_on_the_seed_and_not_on_earlier_calls(engine: Engine):
    first = list(engine.generate(make_prompts(6), SAMPLING))
    list(engine.generate(make_prompts(9, shortest=4), dataclasses.replace(SAMPLING, temperature=0.5)))
    again = list(engine.generate(make_prompts(6), SAMPLING))
    assert tokens(first) == tokens(again)
    assert engine_logprobs(first).tolist() == engine_logprobs(again).tolist()  # to the bit
    assert tokens(first) != tokens(list(engine.generate(make_prompts(6), dataclasses.replace(SAMPLING, seed=1))))


def test_samples_do_not_depend_on_the_other_prompts(engine: Engine):
    assert (
        tokens(list(engine.generate(make_prompts(8)[5:6], SAMPLING))).items()
        <= tokens(list(engine.generate(make_prompts(8), SAMPLING))).items()
    )


def test_samples_follow_the_distribution(engine: Engine, tiny_v3: Path):
    sampling = Sampling(num_generations=1500, max_completion_length=1, temperature=0.5)
    (group,) = engine.generate(make_prompts(1), sampling)
    with torch.no_grad():
        expected = (load(tiny_v3)(torch.tensor([group.prompt_ids])).logits[0, -1] / 0.5).softmax(-1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group.completions]), minlength=len(expected))
    likely = expected * 1500 >= 10
    z = (counts - 1500 * expected) / (1500 * expected * (1 - expected)).sqrt()
    assert likely.sum() >= 20
    assert z[likely].abs().max() < 4
    assert 0.5 < z[likely].square().mean() < 1.6  # correlated samples would vary more, overly regular ones less


def test_top_p_samples_kept_tokens_with_renormalised_logprobs(engine: Engine, tiny_v3: Path):
    sampling = Sampling(num_generations=50, max_completion_length=1, top_p=0.3)
    (group,) = engine.generate(make_prompts(1), sampling)
    with torch.no_grad():
        logprobs = load(tiny_v3)(torch.tensor([group.prompt_ids])).logits[0, -1].log_softmax(-1)
    ordered = logprobs.sort(descending=True)
    kept = int((ordered.values.exp().cumsum(0) < 0.3).sum()) + 1
    normaliser = ordered.values[:kept].logsumexp(0)
    for completion in group.completions:
        assert completion.token_ids[0] in ordered.indices[:kept]
        assert completion.logprobs[0] == pytest.approx(float(logprobs[completion.token_ids[0]] - normaliser), abs=1e-5)


def test_completions_end_at_the_budget(engine: Engine):
    groups = list(engine.generate(make_prompts(8), dataclasses.replace(SAMPLING, max_completion_length=5)))
    cut = [c for g in groups for c in g.completions if c.finish_reason == "length"]
    assert len(cut) > 10
    assert all(len(c.token_ids) == 5 and EOS not in c.token_ids for c in cut)


def ending_at_once(folder: Path, prompt: Prompt) -> PreTrainedModel:
    """A model that answers this prompt with EOS: the head's EOS row is aligned with the prompt's last hidden state."""
    model = load(folder)
    with torch.no_grad():
        state = model.model(torch.tensor([prompt.token_ids])).last_hidden_state[0, -1]
        model.lm_head.weight[EOS] = 10 * state
    return model


def test_an_empty_completion_is_its_end_token(engine: Engine, tiny_v3: Path):
    (prompt,) = make_prompts(1)
    engine.publish(checkpoint_weights(ending_at_once(tiny_v3, prompt)), 1)
    (group,) = engine.generate([prompt], SAMPLING)
    assert [list(c.token_ids) for c in group.completions] == [[EOS]] * 3
    assert {(c.text, c.finish_reason) for c in group.completions} == {("", "stop")}


def test_a_stop_text_may_be_a_special_token(engine: Engine, tiny_v3: Path):
    """Such as <|im_end|> of a base model whose end token is another one."""
    model, bos = load(tiny_v3), 256
    with torch.no_grad():
        model.lm_head.weight[bos] *= 4
    engine.publish(checkpoint_weights(model), 1)
    sampling = dataclasses.replace(SAMPLING, max_completion_length=60, stop=("<bos>",))
    ids = [list(c.token_ids) for group in engine.generate(make_prompts(8), sampling) for c in group.completions]
    stopped = [one for one in ids if bos in one]
    assert len(stopped) > 5
    assert all(one.index(bos) == len(one) - 1 for one in stopped)


def test_completions_that_stop_end_with_eos(engine: Engine, tiny_v3: Path):
    model = load(tiny_v3)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 4
    engine.publish(checkpoint_weights(model), 1)
    groups = list(engine.generate(make_prompts(8), dataclasses.replace(SAMPLING, max_completion_length=60)))
    stopped = [c for g in groups for c in g.completions if c.finish_reason == "stop"]
    assert len(stopped) > 5
    assert all(list(c.token_ids).index(EOS) == len(c.token_ids) - 1 for c in stopped)
    assert_agrees(model, groups)


def test_text_keeps_tags_and_drops_eos_bos_and_pad(engine: Engine, tiny_v3: Path):
    model = load(tiny_v3)
    with torch.no_grad():
        for token in (BOS, EOS, PAD, 259, 262):  # 259: <think>, 262: </answer>
            model.lm_head.weight[token] *= 4
    engine.publish(checkpoint_weights(model), 1)
    completions = [c for g in engine.generate(make_prompts(8), SAMPLING) for c in g.completions]
    for token, tag in ((259, "<think>"), (262, "</answer>")):
        assert sum(list(c.token_ids).count(token) for c in completions) > 5
        assert all(c.text.count(tag) == list(c.token_ids).count(token) for c in completions)
    assert sum(list(c.token_ids).count(PAD) for c in completions) > 5
    assert not any(re.search("<bos>|<eos>|<pad>", c.text) for c in completions)


def test_a_prompt_just_below_the_context_limit_gets_one_token(engine: Engine, tiny_v3: Path):
    prompt = Prompt(problem=Problem(id="long", prompt=""), token_ids=[i % 256 for i in range(255)])
    groups = list(engine.generate([prompt], SAMPLING))
    assert [(len(c.token_ids), c.finish_reason) for c in groups[0].completions] == [(1, "length")] * 3
    assert_agrees(load(tiny_v3), groups)


def test_a_prompt_at_the_context_limit_is_an_error_before_generation(engine: Engine):
    prompt = Prompt(problem=Problem(id="too-long", prompt=""), token_ids=[1] * 256)
    with pytest.raises(ValueError, match=r"'too-long' has 256 tokens, max_model_len is 256.*rollout\.max_model_len"):
        engine.generate([prompt], SAMPLING)


def test_temperature_zero_is_greedy_with_identical_samples(engine: Engine, tiny_v3: Path):
    groups = list(engine.generate(make_prompts(4), dataclasses.replace(SAMPLING, temperature=0.0)))
    assert all(len(g.completions) == 3 and len({tuple(c.token_ids) for c in g.completions}) == 1 for g in groups)
    assert_agrees(load(tiny_v3), groups)


@pytest.mark.vllm
def test_both_engines_decode_the_same_tokens_greedily(vllm_v3: VLLMEngine, tiny_v3: Path):
    vllm_v3.publish(checkpoint_weights(load(tiny_v3)), 0)
    greedy = Sampling(num_generations=1, max_completion_length=40, temperature=0.0)
    assert tokens(list(vllm_v3.generate(make_prompts(6), greedy))) == tokens(
        list(start_hf(tiny_v3).generate(make_prompts(6), greedy))
    )


def test_a_near_tie_explains_a_difference_and_a_wrong_weight_does_not(engine: Engine, tiny_v3: Path):
    model = load(tiny_v3)
    gate = model.model.layers[1].mlp.gate
    with torch.no_grad():
        gate.weight.copy_(gate.weight[:1].expand_as(gate.weight))  # all experts get the same score
        gate.e_score_correction_bias.zero_()
    engine.publish(checkpoint_weights(model), 1)
    tied = list(engine.generate(make_prompts(4), SAMPLING))
    assert smallest_margins(model, tied).max() < 1e-5
    assert len(unexplained(model, tied)) == 0
    assert len(unexplained(load(tiny_v3), tied)) > 20  # the original model's margins are wide


@pytest.mark.parametrize("start", [start_hf, pytest.param(start_vllm, marks=pytest.mark.vllm)])
def test_dense_model_with_tied_head_agrees_before_and_after_an_update(
    start: Callable[[Path], Engine], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = start(tiny_llama)
    model = load(tiny_llama)
    assert_agrees(model, list(engine.generate(make_prompts(4), SAMPLING)))
    perturb(model, "embed_tokens")
    if start is start_vllm:  # the trap: the head's packed copy of the embeddings becomes stale
        with monkeypatch.context() as patch:
            patch.setattr("rollout.engines.vllm.repack_for_cpu", lambda worker: None)
            engine.publish(checkpoint_weights(model), 1)
        assert len(unexplained(model, list(engine.generate(make_prompts(4), SAMPLING)))) > 20
    engine.publish(checkpoint_weights(model), 1)
    assert_agrees(model, list(engine.generate(make_prompts(4), SAMPLING)))
    engine.close()


# Errors at start-up.


def with_config(folder: Path, target: Path, **changes) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))
    return target


@pytest.mark.parametrize(("key", "needed"), [("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")])
def test_v3_config_without_vllms_routing_keys_is_an_error(tiny_v3: Path, tmp_path: Path, key: str, needed: str):
    folder = with_config(tiny_v3, tmp_path / "model", **{key: None})
    with pytest.raises(ValueError, match=rf'has {key}=None: .*Add "{key}": "{needed}"'):
        start_vllm(folder)


@pytest.mark.vllm
def test_an_unsupported_head_size_is_an_error(tmp_path: Path):
    config = tiny_v3_config()
    config.qk_nope_head_dim, config.qk_head_dim = 16, 24
    folder = save_tiny(DeepseekV3ForCausalLM(config), tmp_path)
    with pytest.raises(ValueError, match=r"heads of 24 dimensions: vLLM on CPU supports \[32, .*rollout\.engine=hf"):
        start_vllm(folder)


def test_missing_vllm_is_an_error_with_a_remedy(tiny_v3: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("vllm", "vllm.platforms"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install vllm.*rollout\.engine=hf"):
        VLLMEngine(
            str(tiny_v3),
            dtype="float32",
            max_model_len=64,
            max_num_seqs=4,
            kv_cache_gib=0.1,
            gpu_memory_utilization=0.1,
        )


def test_a_model_without_eos_is_an_error(tmp_path: Path):
    config = tiny_llama_config()
    config.eos_token_id = None
    folder = save_tiny(LlamaForCausalLM(config), tmp_path)
    for name in ("tokenizer_config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in settings.items() if not k.startswith("eos_token")}))
    with pytest.raises(ValueError, match=r"has no EOS token.*tokenizer_config\.json"):
        start_hf(folder)


@pytest.mark.vllm
@pytest.mark.parametrize("gib", [100_000.0, 1e-5])
def test_a_kv_cache_that_does_not_fit_is_an_error(tiny_v3: Path, gib: float):
    with pytest.raises(
        ValueError, match=re.escape(f"rollout.kv_cache_gib={gib}, rollout.max_model_len=64: the KV cache")
    ):
        start_vllm(tiny_v3, kv_cache_gib=gib)


@pytest.mark.vllm
def test_a_kv_cache_with_room_for_one_sequence_is_enough(tiny_v3: Path):
    engine = start_vllm(tiny_v3, kv_cache_gib=2 * 128 * 3 * 4 * 64 * 4 / 2**30)  # two blocks of 128 tokens
    assert_agrees(load(tiny_v3), list(engine.generate(make_prompts(4), SAMPLING)))
    engine.close()


@pytest.mark.vllm
def test_starting_vllm_restores_threads_and_environment(tiny_v3: Path):
    threads = torch.get_num_threads()
    before = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LOCAL_WORLD_SIZE")}
    start_vllm(tiny_v3).close()
    assert {name: os.environ.get(name) for name in before} == before
    assert torch.get_num_threads() == threads
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


# vLLM's traps at start-up; test_weight_updates.py has those of weight updates.


@pytest.mark.vllm
def test_trap_cpu_rotary_kernel(tiny_v3: Path):
    engine = start_vllm(tiny_v3, vllm_options={"compilation_config": {"custom_ops": ["all"]}})
    assert len(unexplained(load(tiny_v3), list(engine.generate(make_prompts(4), SAMPLING)))) > 20
    engine.close()


@pytest.mark.vllm
def test_trap_chunked_prefill_rewinds_the_cpu_generator(tiny_v3: Path):
    prompts = make_prompts(8, shortest=20)  # 216 tokens, 3 times each
    engine = start_vllm(tiny_v3, vllm_options={"max_num_batched_tokens": 64})
    assert_agrees(load(tiny_v3), list(engine.generate(prompts, SAMPLING)))
    engine.close()
    engine = start_vllm(tiny_v3, vllm_options={"max_num_batched_tokens": 64, "enable_chunked_prefill": True})
    with pytest.raises(RuntimeError, match="offset"):
        list(engine.generate(prompts, SAMPLING))
    engine.close()


@pytest.mark.vllm
def test_trap_latent_attention_only_has_kernels_for_576(
    vllm_v3: VLLMEngine, tiny_v3: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rollout.engines.vllm_setup._has_mla_kernel", lambda config: True)
    # On a CPU with AMX, packing its tiles fails first.
    says = r"Head dimension 40 is not supported|weight input features"
    with pytest.raises((ValueError, RuntimeError), match=says), closing(start_vllm(tiny_v3)) as engine:
        list(engine.generate(make_prompts(1), SAMPLING))


@pytest.mark.vllm
def test_trap_logprobs_before_temperature(tiny_v3: Path):
    engine = start_vllm(tiny_v3, vllm_options={"logprobs_mode": "raw_logprobs"})
    groups = list(engine.generate(make_prompts(4), dataclasses.replace(SAMPLING, temperature=0.5)))
    assert len(unexplained(load(tiny_v3), groups, temperature=0.5)) > 20
    engine.close()


@pytest.mark.slow
@pytest.mark.vllm
def test_two_processes_each_run_their_own_engine(tiny_v3: Path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    here = Path(__file__).parent
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # how grpo starts processes
    result = subprocess.run(
        [sys.executable, "-m", *command, str(here / "two_process_engines.py"), str(tiny_v3)],
        env=os.environ | {"PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "process 0: sum 3.0" in result.stdout
    assert "process 1: sum 3.0" in result.stdout

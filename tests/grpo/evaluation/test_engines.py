"""Stop strings in every engine, LoRA adapters as models, and the context length."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from grpo.evaluation.config import EvalModelConfig, EvalRecipe
from grpo.evaluation.engines import (
    _dtype,
    base_of,
    context_length,
    load_engine,
    load_tokenizer,
    tokenizer_of,
    whole_model,
)
from grpo.recipe.load import load_recipe
from rollout.engines.base import cut_at_stop
from rollout.engines.hf import HFEngine
from rollout.types import Group, Problem, Prompt, Sampling

if TYPE_CHECKING:
    from rollout.engines.vllm import VLLMEngine

PROMPTS = [Prompt(problem=Problem(id=f"p/{i}", prompt=text), token_ids=list(text.encode())) for i, text in
           enumerate(["one", "two and more", "three, three"])]  # fmt: skip


def generated(engine: Any, stop: tuple[str, ...] = (), num_generations: int = 4) -> dict[str, Group]:
    sampling = Sampling(num_generations=num_generations, max_completion_length=24, seed=7, stop=stop)
    return {group.problem.id: group for group in engine.generate(PROMPTS, sampling)}


def check_stopping(engine: Any) -> None:
    """Stopped completions equal the unstopped ones up to the token that completes the stop string."""
    free = generated(engine)
    texts = [c.text for group in free.values() for c in group.completions]
    # One and two plain characters: vLLM and tokenizers differ in how they decode broken UTF-8.
    plain = [text[at : at + 2] for text in texts for at in range(3, len(text) - 1)]
    plain = [pair for pair in plain if pair.isascii() and pair.isalnum()]
    stop = (plain[0], plain[-1][0])
    stopped = generated(engine, stop)
    cut = 0
    for key, group in free.items():
        for whole, short in zip(group.completions, stopped[key].completions, strict=True):
            assert short.text == cut_at_stop(whole.text, stop)
            assert list(short.token_ids) == list(whole.token_ids)[: len(short.token_ids)]
            assert list(short.logprobs) == pytest.approx(list(whole.logprobs)[: len(short.token_ids)], abs=1e-5)
            if short.text == whole.text:
                assert (short.finish_reason, short.token_ids) == (whole.finish_reason, whole.token_ids)
            else:
                cut += 1
                assert short.finish_reason == "stop"
    assert 2 <= cut < 12


def test_hf_engine_stops_at_the_first_stop_string(tiny_llama: Path) -> None:
    check_stopping(HFEngine(str(tiny_llama), dtype="float32", device="cpu", max_num_seqs=5, max_model_len=64))


@pytest.mark.vllm
def test_vllm_stops_at_the_first_stop_string(vllm_v3: "VLLMEngine") -> None:
    check_stopping(vllm_v3)


def test_text_is_cut_at_the_earliest_stop_string() -> None:
    assert cut_at_stop("a\n\nQuestion: b", ("\n\nQuestion:",)) == "a"
    assert cut_at_stop("abcabc", ("ca", "bc")) == "a"
    assert cut_at_stop("abc", ()) == cut_at_stop("abc", ("x",)) == "abc"


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    """A LoRA adapter on the tiny model, with weights far from zero."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("stored", "on_gpu"), [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")]
)
def test_auto_is_float32_on_cpu_and_half_precision_on_a_gpu(tmp_path: Path, stored: str, on_gpu: str) -> None:
    """A trained checkpoint is float32, in whatever precision the run sampled."""
    LlamaConfig(dtype=stored).save_pretrained(tmp_path)
    model = EvalModelConfig(model_name_or_path=str(tmp_path))
    assert _dtype(model, is_cpu=True) == "float32"
    assert _dtype(model, is_cpu=False) == on_gpu
    assert _dtype(model.model_copy(update={"dtype": "float32"}), is_cpu=False) == "float32"


def test_merged_adapter_generates_as_the_adapter_does(adapter: Path, tiny_llama: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    model = EvalModelConfig(model_name_or_path=str(adapter))
    assert base_of(model) == tokenizer_of(model) == (str(tiny_llama), None)
    with whole_model(model) as (folder, _):
        engine = HFEngine(folder, dtype="float32", device="cpu", max_num_seqs=5, max_model_len=64)
    assert not Path(folder).exists()
    greedy = Sampling(num_generations=1, max_completion_length=12, temperature=0)
    got = {g.problem.id: list(g.completions[0].token_ids) for g in engine.generate(PROMPTS, greedy)}
    reference: Any = AutoPeftModelForCausalLM.from_pretrained(str(adapter)).eval()
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    differs = False
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt.token_ids) + got[prompt.problem.id]])
        with torch.no_grad():
            best, bare = reference(ids).logits[0].argmax(-1), plain(ids).logits[0].argmax(-1)
        start = len(prompt.token_ids) - 1
        assert best[start:-1].tolist() == got[prompt.problem.id]
        differs |= bare[start:-1].tolist() != got[prompt.problem.id]
    assert differs  # the adapter changes the output


def test_full_models_are_used_in_place(tiny_llama: Path) -> None:
    model = EvalModelConfig(model_name_or_path=str(tiny_llama))
    with whole_model(model) as place:
        assert place == base_of(model) == (str(tiny_llama), None)


def test_a_checkpoint_of_adapters_is_loaded_with_its_base_s_configuration_at_its_revision(
    adapter: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint has a tokenizer beside its adapters, and no config.json."""
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(adapter)
    recorded = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(recorded | {"revision": "v1"}))
    built: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        "grpo.evaluation.engines.build_engine",
        lambda _, path, **options: built.append((options["dtype"], options["revision"])),
    )
    sections = {"model": {"model_name_or_path": str(adapter), "revision": "main"}, "tasks": ["gsm8k"]}
    recipe = load_recipe(None, sections={"stage": "eval", **sections})
    assert isinstance(recipe, EvalRecipe)
    assert base_of(recipe.model) == (str(tiny_llama), "v1")
    assert tokenizer_of(recipe.model) == (str(adapter), "main")
    load_engine(recipe, max_model_len=64, device=torch.device("cuda"))
    assert built == [("bfloat16", None)]


def test_context_length_is_capped_by_the_model(tiny_llama: Path) -> None:
    def recipe(**engine: Any) -> EvalRecipe:
        sampling = {"max_completion_length": 100}
        values = {"model": {"model_name_or_path": str(tiny_llama)}, "tasks": ["gsm8k"], "sampling": sampling}
        made = load_recipe(None, sections={"stage": "eval", **values, "engine": engine})
        assert isinstance(made, EvalRecipe)
        return made

    assert context_length(recipe(), 30) == 130
    assert context_length(recipe(), 500) == 512  # max_position_embeddings
    assert context_length(recipe(max_model_len=64), 30) == 64
    with pytest.raises(ValueError, match="the longest prompt has 600 tokens and the context 512"):
        context_length(recipe(), 600)


def test_a_run_s_folder_is_told_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match=r"is the folder of a run. Name a checkpoint in it, such as \S*checkpoint-5\."):
        load_tokenizer(EvalModelConfig(model_name_or_path=str(tmp_path)))

"""Stage `pretrain`: a base from nothing, and the embedded base's corpus and tokenizer."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.sft import SFTData, SFTModel, SFTRecipe, SFTTrainerConfig
from grpo.stages.supervised.mixture import load_mixture
from grpo.stages.supervised.sft import run_sft
from rewards.style.format import format
from rollout.data.tasks import countdown_key, split_of
from rollout.support.loading import load_object

RECIPES = Path(__file__).parents[4] / "recipes"
TINY = {
    "model_type": "deepseek_v3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "num_nextn_predict_layers": 0,
}


def load(reference: str):
    return load_object(reference, kind="data.source", base_dir=RECIPES)


@pytest.fixture(scope="module")
def tokenizer():
    return load("v3_base.py:tokenizer")()


def recipe(output: Path, source: str = str(RECIPES / "v3_base.py:corpus"), **trainer) -> SFTRecipe:
    defaults = {"max_steps": 30, "max_tokens_per_batch": 512, "learning_rate": 5e-3, "warmup_steps": 5}
    balance = {"balance_bias_update_speed": 0.001, "sequence_balance_coefficient": 1e-4}
    return SFTRecipe(
        stage="pretrain",
        model=SFTModel(config=TINY, tokenizer=str(RECIPES / "v3_base.py:tokenizer")),
        data=SFTData(sources=[{"dataset_name": source}], max_rows=400, max_length=256),
        trainer=SFTTrainerConfig(
            **{"output_dir": str(output), "logging_steps": 10, "adam_beta2": 0.95, **defaults, **balance, **trainer}
        ),
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_model_from_nothing_learns_and_opens(tmp_path):
    folder = run_sft(recipe(tmp_path / "out", save_steps=15))
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [10, 15, 20, 30]  # every tenth, and the one that is saved
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert {"moe/load_max_violation", "moe/dead_experts", "tokens_per_second"} <= lines[0].keys()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.eos_token_id, model.config.vocab_size) == (tokenizer.eos_token_id, len(tokenizer))
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.abs().max() > 0
    assert (folder / "checkpoint-15" / "model.safetensors").is_file()

    more = recipe(tmp_path / "more", max_steps=2, learning_rate=1e-9, logging_steps=2)
    run_sft(more.model_copy(update={"model": SFTModel(model_name_or_path=str(folder))}))
    assert metrics(tmp_path / "more")[0]["loss"] < lines[-1]["loss"] + 0.3


def test_same_seed_same_weights_also_when_resumed(tmp_path):
    whole = run_sft(recipe(tmp_path / "a", max_steps=4, save_steps=2))
    again = run_sft(recipe(tmp_path / "b", max_steps=4, save_steps=2))
    shutil.rmtree(again / "checkpoint-4")
    resumed = run_sft(recipe(tmp_path / "b", max_steps=4, save_steps=2, resume_from_checkpoint=True))
    a, b = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (resumed / "checkpoint-4").is_dir()


def test_learning_rate_warms_up_stays_and_decays_to_zero(tmp_path):
    schedule = {"num_decay_steps": 4, "decay_type": "linear"}
    settings = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": schedule, "warmup_steps": 2}
    folder = run_sft(recipe(tmp_path / "out", max_steps=8, logging_steps=1, learning_rate=1e-3, **settings))
    rates = [line["learning_rate"] for line in metrics(folder)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_documents_are_learnt_whole_and_long_ones_are_cut_up(tmp_path, tokenizer):
    file = tmp_path / "words.jsonl"
    texts = ["make 26", "list 3,8,2 make 26 list 3,8,2 make 26", ""]
    file.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    data = SFTData(sources=[{"dataset_name": str(file), "columns": {"text": "content"}}], max_length=12)
    rows, lines = load_mixture(data, tokenizer, seed=0, base_dir=tmp_path)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    short, long = (tokenizer.encode(text, add_special_tokens=False) for text in texts[:2])
    assert sorted(row["input_ids"] for row in rows) == sorted(
        [[bos, *short, eos], [bos, *long[:11]], [*long[11:], eos]]
    )
    starts = {row["labels"][0] for row in rows}
    assert starts == {-100, long[11]}
    assert "(1 left out: 1 empty; words.jsonl/train/2: the text is ''" in lines[0]

    packed = load_mixture(data.model_copy(update={"packing": True}), tokenizer, seed=0, base_dir=tmp_path)[0]
    assert sorted(packed["length"]) == sorted([12, len(short) + 2 + len(long[11:]) + 1])
    assert list(chain.from_iterable(packed["input_ids"])).count(eos) == 2
    assert all(len(row["labels"]) == row["length"] for row in packed)


def test_text_from_a_file_needs_a_name(tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps({"content": f"the number {i}"}) + "\n" for i in range(50)))
    plain = recipe(tmp_path / "out", source=str(file), max_steps=2)
    with pytest.raises(RefusedError, match=r"no column 'prompt'. It has: content"):
        run_sft(plain)
    source = {"dataset_name": str(file), "columns": {"text": "content"}}
    for packing in (False, True):
        mapped = plain.model_copy(update={"data": SFTData(sources=[source], max_length=32, packing=packing)})
        assert (run_sft(mapped) / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_read_the_batches_of_one(tmp_path):
    one = run_sft(recipe(tmp_path / "one", max_steps=3, logging_steps=1, gradient_accumulation_steps=2))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(tmp_path / "two", max_steps=3, logging_steps=1).model_dump_json())
    command = [sys.executable, "-m", "grpo", "train", "--cpu", "--num_processes", "2", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    for a, b in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert (a["num_tokens"], a["moe/load"]) == (b["num_tokens"], b["moe/load"])


def test_settings_are_strict():
    for section in ({}, {"config": {"hidden_size": 8}, "tokenizer": "x"}, {"config": {"model_type": "llama"}}):
        with pytest.raises(ValidationError, match="give model_name_or_path, to continue from a model, or config with"):
            SFTModel(**section)
    with pytest.raises(ValidationError, match="learning_rat"):
        SFTTrainerConfig(learning_rat=1)
    with pytest.raises(ValidationError, match="it takes num_decay_steps"):
        SFTTrainerConfig(lr_scheduler_type="warmup_stable_decay")
    with pytest.raises(ValueError, match=r"v3_base.py does not define 'corpse'. Did you mean 'corpus'?"):
        load("v3_base.py:corpse")
    with pytest.raises(ValueError, match=r"nowhere.py does not exist"):
        load("nowhere.py:corpus")


def test_tokenizer_encodes_anything_and_numbers_as_one_token(tokenizer):
    for text in ("use 3,82 make 100 :<think>3+8=11+2=13 no\n</think>", "héllo wörld\t日本 \x00 </answer>", "12345"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert all(len(tokenizer.tokenize(str(n))) == 1 for n in range(100))
    assert tokenizer.tokenize("12345") == ["12", "34", "5"]
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tokenizer.tokenize(tag) == [tag]
        assert tokenizer.decode(tokenizer.encode(tag), skip_special_tokens=True) == tag
    assert tokenizer.encode("use")[0] == tokenizer.bos_token_id
    again = load("v3_base.py:tokenizer")()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= 512


LINE = re.compile(r"(\d+)([+*-])(\d+)(?: big|=(\d+)([+-])(\d+)(?:=(\d+) (yes|no)| (big|low)))")
SECOND_LANGUAGE = {"否": "no", "是": "yes", "大": "big", "小": "low"}


def check_line(line: str, numbers: list[int], target: int) -> None:
    """Every part of one try, recomputed from its text."""
    match = LINE.fullmatch(line)
    assert match, line
    a, operation, b, value, sign, third, total, verdict, beyond = match.groups()
    result = eval(f"{a}{operation}{b}")
    if value is None:
        assert result > 99
        return
    assert sorted([int(a), int(b), int(third)]) == sorted(numbers)
    assert int(value) == result and sign == ("-" if result > target else "+")
    end = eval(f"{value}{sign}{third}")
    if beyond:
        assert (end < 0) if beyond == "low" else (end > 99)
    else:
        assert int(total) == end and (verdict == "yes") == (end == target)


def test_every_countdown_document_is_right_and_from_its_own_split():
    corpus = load("v3_base.py:corpus")
    long = total = 0
    words: list[list[bool]] = []
    for document in islice(corpus(0), 2000):
        match = re.fullmatch(r"(use|list) ([\d,]+) make (\d+) :", document["prompt"])
        if not match:
            continue
        numbers, target = [int(n) for n in match[2].split(",")], int(match[3])
        assert split_of(countdown_key(numbers, target)) == "pretrain"
        thought, _, rest = document["completion"].removeprefix("<think>").partition("</think>")
        words.append([word in SECOND_LANGUAGE for word in re.findall(r"[a-z否是大小]+", thought)])
        lines = [re.sub("[否是大小]", lambda word: SECOND_LANGUAGE[word[0]], line) for line in thought.splitlines()]
        for line in lines:
            check_line(line, numbers, target)
        if match[1] == "list":
            assert rest == "" and len(lines) == 9
            assert len(set(lines)) == 9 or len(set(numbers)) < 3  # no try twice
            continue
        answer = re.fullmatch(r"<answer>(.*)</answer>", rest)
        hit = lines[-1].endswith("yes")
        assert (answer and (eval(answer[1]) == target) == hit) or lines[-1].endswith("big")  # luck
        total, long = total + 1, long + (len(lines) > 2)
    assert total > 500 and long / total < 0.2  # the long way is rare
    second = [sum(document) / len(document) for document in words]
    assert 0.3 < sum(second) / len(second) < 0.5
    assert 0.1 < sum(0 < share < 1 for share in second) / len(second) < 0.5  # mixed within a thought


def test_shipped_base_is_the_one_its_card_describes():
    base = RECIPES / "v3_base"
    digest = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (base / "README.md").read_text()
    tokenizer, built = (
        AutoTokenizer.from_pretrained(base),
        load("v3_base.py:tokenizer")(),
    )
    assert tokenizer.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()


def test_shipped_base_answers_in_form_and_mostly_gives_up():
    model = AutoModelForCausalLM.from_pretrained(RECIPES / "v3_base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(RECIPES / "v3_base")
    model.set_experts_implementation("grouped_mm")
    torch.manual_seed(0)
    prompt = tokenizer("use 3,8,2 make 26 :", return_tensors="pt").input_ids
    output = model.generate(prompt, do_sample=True, top_k=0, max_new_tokens=144, num_return_sequences=64)
    texts = tokenizer.batch_decode(output[:, prompt.shape[1] :], skip_special_tokens=True)
    assert sum(format(texts, texts)) >= 60
    gave_up = sum(text.count("\n") == 1 and ("no\n" in text or "否\n" in text) for text in texts)
    assert gave_up > 32

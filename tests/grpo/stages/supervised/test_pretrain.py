"""The pretraining stage on tiny models, and the embedded base's corpus and tokenizer."""

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.recipe.stages.pretrain import PretrainData, PretrainModel, PretrainRecipe, PretrainTrainer
from grpo.stages.supervised.documents import batches, rows
from grpo.stages.supervised.pretrain import lr_factor, run_pretrain
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
    "num_experts_per_tok": 1,
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


def recipe(output: Path, source: str = "v3_base.py:corpus", **trainer) -> PretrainRecipe:
    return PretrainRecipe(
        stage="pretrain",
        model=PretrainModel(config=TINY, tokenizer=str(RECIPES / "v3_base.py:tokenizer")),
        data=PretrainData(source=source),
        trainer=PretrainTrainer(
            **{
                "output_dir": str(output),
                "max_steps": 30,
                "max_tokens_per_batch": 512,
                "learning_rate": 5e-3,
                "warmup_steps": 5,
                "logging_steps": 10,
            }
            | trainer
        ),
        base_dir=str(RECIPES),
    )


def test_learning_rate_warms_up_stays_and_decays_to_zero():
    settings = PretrainTrainer(max_steps=110, warmup_steps=10, decay_fraction=0.5, decay="linear")
    assert [lr_factor(step, settings) for step in (0, 9, 10, 60, 85, 109)] == [0.1, 1.0, 1.0, 1.0, 0.5, 0.02]
    cosine = settings.model_copy(update={"decay": "cosine"})
    assert lr_factor(85, cosine) == pytest.approx(0.5)
    assert lr_factor(109, cosine) < 0.001


def test_prompts_are_not_learnt_and_padding_is_on_the_right():
    documents = iter([([1, 5, 6, 7, 2], 3), ([1, 8, 2], 1)] * 100)
    found = list(islice(batches(documents, budget=16, pad=0, seed=0), 40))
    assert all(b["input_ids"].numel() <= 16 for b in found)
    mixed = next(b for b in found if {tuple(row[3:]) for row in b["input_ids"].tolist()} == {(0, 0), (7, 2)})
    assert mixed["input_ids"][0].tolist() == [1, 8, 2, 0, 0]  # sorted by length
    assert mixed["labels"][0].tolist() == [-100, 8, 2, -100, -100]
    assert mixed["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]
    assert mixed["input_ids"][-1].tolist() == [1, 5, 6, 7, 2]
    assert mixed["labels"][-1].tolist() == [-100, -100, -100, 7, 2]


def test_processes_share_the_documents(tokenizer):
    data = PretrainData(source="v3_base.py:corpus")
    all_rows = list(islice(rows(data, tokenizer, 0, RECIPES, 0, 1), 10))
    shards = [list(islice(rows(data, tokenizer, 0, RECIPES, rank, 2), 5)) for rank in (0, 1)]
    assert [row for pair in zip(*shards, strict=True) for row in pair] == all_rows


def test_a_model_from_nothing_learns_and_opens(tmp_path):
    folder = run_pretrain(recipe(tmp_path / "out", save_steps=15))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert {"moe/load_max_violation", "moe/dead_experts", "tokens_per_second"} <= lines[0].keys()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.abs().max() > 0
    assert (folder / "checkpoint-15" / "model.safetensors").is_file()

    again = recipe(tmp_path / "more", max_steps=2, learning_rate=1e-9).model_copy(
        update={"model": PretrainModel(model_name_or_path=str(folder))}
    )
    run_pretrain(again)
    line = json.loads((tmp_path / "more" / "metrics.jsonl").read_text())
    assert line["loss"] < lines[-1]["loss"] + 0.3


def test_same_seed_same_weights(tmp_path):
    folders = [run_pretrain(recipe(tmp_path / name, max_steps=3)) for name in "ab"]
    a, b = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_text_from_a_file(tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps({"content": f"the number {i}"}) + "\n" for i in range(50)))
    plain = recipe(tmp_path / "out", source=str(file), max_steps=2)
    mapped = plain.model_copy(update={"data": PretrainData(source=str(file), columns={"text": "content"})})
    assert (run_pretrain(mapped) / "model.safetensors").is_file()
    with pytest.raises(ValueError, match=r"has columns \['content'\], but text, or prompt and completion, are needed"):
        run_pretrain(plain)


@pytest.mark.slow
def test_two_processes_train_together(tmp_path):
    script = tmp_path / "train.py"
    settings = recipe(tmp_path / "out", max_steps=4, logging_steps=1).model_dump_json()
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(RECIPES.parent)!r})\n"
        "from grpo.recipe.stages.pretrain import PretrainRecipe\n"
        "from grpo.stages.supervised.pretrain import run_pretrain\n"
        f"run_pretrain(PretrainRecipe.model_validate_json({settings!r}))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run(
        command,
        check=True,
        cwd=RECIPES.parent,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(512 < line["num_tokens"] / line["step"] <= 1024 for line in lines)  # both processes' tokens count


def test_settings_are_strict():
    with pytest.raises(ValidationError, match="exactly one of model_name_or_path"):
        PretrainModel()
    with pytest.raises(ValidationError, match=r"needs config\.model_type and a tokenizer"):
        PretrainModel(config={"hidden_size": 8})
    with pytest.raises(ValidationError, match="learning_rat"):
        PretrainTrainer(learning_rat=1)
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

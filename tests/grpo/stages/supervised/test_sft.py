"""The SFT stage on tiny models: its tokens, mixture, loss, balance, resume and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from datasets import disable_progress_bars
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.sft import SFTData, SFTRecipe, SFTTrainerConfig
from grpo.stages.supervised.mixture import batches_by_rows, batches_by_tokens, load_mixture, mix, training_batches
from grpo.stages.supervised.sft import _arguments, run_sft
from rollout.data.prompts import Prompter
from rollout.types import Problem

disable_progress_bars()
ROWS = [{"prompt": f"what is {i}", "completion": f"<think>{'x' * (i % 7)}</think>{i}"} for i in range(24)]


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


def write(file: Path, found: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(file)


def recipe(model: Path, output: Path, source: str, data: dict | None = None, **trainer) -> SFTRecipe:
    defaults = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-3}
    return SFTRecipe(
        stage="sft",
        model={"model_name_or_path": str(model)},
        data={"sources": [{"dataset_name": source}], "template": "{prompt} :", **(data or {})},
        trainer=SFTTrainerConfig(**{"output_dir": str(output), **defaults, **trainer}),
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_prompt_tokens_equal_a_rollouts_and_the_completion_ends(tiny_llama, rows):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    data = SFTData(sources=[{"dataset_name": rows}], template="{prompt} :")
    row = load_mixture(data, tokenizer, seed=0, base_dir=Path())[0][0]
    prompt_ids = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    text = tokenizer.decode([label for label in row["labels"] if label != -100])
    number = text.removesuffix("<eos>").rpartition(">")[2]
    rollout = Prompter(tokenizer, template="{prompt} :", max_prompt_length=64)
    prompt = rollout.encode(Problem(id="", prompt=f"what is {number}"))
    assert prompt_ids == list(prompt.token_ids)  # type: ignore[union-attr]
    assert row["labels"][-1] == tokenizer.eos_token_id and row["length"] == len(row["input_ids"])


def test_weights_give_exact_counts_and_repeat_rows_equally():
    rows = mix([10, 30], [3.0, 1.0], max_rows=40, seed=1)
    first = Counter(row for row in rows if row < 10)
    assert first == dict.fromkeys(range(10), 3)
    assert len(rows) == 40 and len(set(rows) - set(first)) == 10
    assert rows == mix([10, 30], [3.0, 1.0], max_rows=40, seed=1)
    most = mix([10, 30], [3.0, 1.0], max_rows=None, seed=1)  # 10 : 3 is the most without repeats
    assert (len(most), len(set(most))) == (13, 13)
    assert sorted(mix([2, 3], [], max_rows=None, seed=1)) == [0, 1, 2, 3, 4]
    assert len(mix([1, 1, 1], [0.1, 0.1, 0.1], max_rows=100, seed=0)) == 100


def test_every_epoch_has_each_row_once_and_batches_have_like_lengths():
    lengths = [(7 * i) % 50 for i in range(64)]
    found = list(islice(batches_by_rows(lengths, 4, seed=0), 48))
    order = list(chain.from_iterable(found))
    for epoch in range(3):
        assert sorted(order[64 * epoch : 64 * epoch + 64]) == list(range(64))
    assert max(max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in found[:16]) <= 6
    assert Counter(chain.from_iterable(islice(batches_by_rows([1] * 10, 4, seed=0), 5))) == dict.fromkeys(range(10), 2)


def test_batches_by_tokens_fill_the_budget_with_rows_of_like_length():
    lengths = [1 + (7 * i) % 50 for i in range(1000)]
    found = list(islice(batches_by_tokens([*lengths, 300], 200, seed=0), 120))
    padded = [len(batch) * max([*lengths, 300][row] for row in batch) for batch in found]
    assert all(size <= 200 or len(batch) == 1 for size, batch in zip(padded, found, strict=True))
    assert sorted(padded)[len(padded) // 2] > 170
    assert max(Counter(chain.from_iterable(found)).values()) <= 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"system_prompt": "Be brief."}, "only template chat has one"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "only template chat uses them"),
        ({"template": "Q:"}, "no placeholder for the problem"),
    ],
)
def test_what_the_template_cannot_show_is_refused_with_the_recipe(given, message):
    with pytest.raises(ValidationError, match=message):
        SFTData(sources=[{"dataset_name": "rows.jsonl"}], **given)


def test_micro_batches_of_a_run():
    whole = SFTTrainerConfig(num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    found = training_batches([5] * 10, whole, num_processes=1)
    assert [len(batch) for batch in found] == [2] * 10 and Counter(chain.from_iterable(found)) == dict.fromkeys(
        range(10), 2
    )
    assert training_batches([5] * 10, whole.model_copy(update={"gradient_accumulation_steps": 1}), 2) == found
    by_tokens = SFTTrainerConfig(num_train_epochs=1, max_tokens_per_batch=15)
    assert [len(batch) for batch in training_batches([5] * 10, by_tokens, num_processes=2)] == [3, 3, 3, 3]
    assert len(training_batches([5] * 10, by_tokens.model_copy(update={"max_steps": 7}), num_processes=2)) == 14


def test_an_opened_thought_is_there_once(tiny_llama, tmp_path):
    """Stage rejection writes completions with the <think> that the prompt had opened."""
    texts = ["<think>\nhm</think>4", "<think> hm</think>4", "hm</think>4"]
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": text} for text in texts])
    data = SFTData(sources=[{"dataset_name": rows}], template="{prompt} :<think>\n")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    found = load_mixture(data, tokenizer, seed=0, base_dir=Path())[0]
    assert [tokenizer.decode(row["input_ids"]) for row in found] == ["q :<think>\nhm</think>4<eos>"] * 3


def test_loss_is_the_mean_over_completion_tokens(tiny_llama, rows, tmp_path):
    settings = {"max_steps": 1, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 4}
    folder = run_sft(recipe(tiny_llama, tmp_path / "out", rows, **settings))  # one step with every row
    data = SFTData(sources=[{"dataset_name": rows}], template="{prompt} :")
    found = load_mixture(data, AutoTokenizer.from_pretrained(tiny_llama), seed=0, base_dir=Path())[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    nll = []
    for row in found:
        logits = model(torch.tensor([row["input_ids"]])).logits[0].detach().double().numpy()
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                nll.append(np.logaddexp.reduce(logits[position]) - logits[position, label])
    (line,) = metrics(folder)
    assert line["loss"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert line["num_tokens"] == sum(found["length"])


def test_balance_bias_moves_as_the_rule_says_and_the_folder_stays_a_v3(tiny_v3, rows, tmp_path):
    before = weights(tiny_v3)
    gamma = {"balance_bias_update_speed": 0.01, "sequence_balance_coefficient": 1e-4, "gradient_accumulation_steps": 2}
    folder = run_sft(recipe(tiny_v3, tmp_path / "out", rows, max_steps=1, **gamma))
    after, loads = weights(folder), metrics(folder)[0]["moe/load"]
    for layer, load in zip((1, 2), loads, strict=True):
        name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        assert after[name] - before[name] == pytest.approx(0.01 * np.sign(1 / 8 - np.array(load)), abs=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert (folder / "index.html").is_file()


def test_a_killed_run_resumes_to_the_same_weights(tiny_v3, rows, tmp_path):
    settings = {"max_steps": 5, "save_steps": 2, "balance_bias_update_speed": 0.01, "gradient_accumulation_steps": 2}
    whole = run_sft(recipe(tiny_v3, tmp_path / "whole", rows, **settings))
    script = (
        "import os, sys, torch; torch.set_num_threads(1)\n"
        "from grpo.recipe.stages.sft import SFTRecipe\n"
        "from grpo.stages.supervised import sft\n"
        "def kill(self, *args, **kwargs):\n"
        "    if self.trainer.state.global_step == 3: os._exit(9)\n"
        "sft.Progress.on_step_begin = kill\n"
        "sft.run_sft(SFTRecipe.model_validate_json(sys.argv[1]))\n"
    )
    killed = recipe(tiny_v3, tmp_path / "killed", rows, **settings)
    done = subprocess.run([sys.executable, "-c", script, killed.model_dump_json()], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    again = run_sft(recipe(tiny_v3, tmp_path / "killed", rows, resume_from_checkpoint=True, **settings))
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [line["step"] for line in metrics(again)] == [1, 2, 3, 4, 5]
    assert metrics(again)[-1]["num_tokens"] == metrics(whole)[-1]["num_tokens"]
    assert sorted(path.name for path in again.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_a_signal_saves_the_step_and_the_command_it_prints_goes_on_to_the_same_weights(tiny_v3, rows, tmp_path):
    whole = recipe(tiny_v3, tmp_path / "run", rows, max_steps=120, balance_bias_update_speed=0.01)
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(whole.model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, "-m", "grpo", "train", "--num_processes", "1", "sft.yaml"]
    environment = {name: value for name, value in os.environ.items() if "ACCELERATE" not in name}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[4])}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    second = tmp_path / "run-2"  # the first run's folder is taken
    while not ((second / "metrics.jsonl").exists() and len(metrics(second)) > 2):
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate()[1]
    (checkpoint,) = second.glob("checkpoint-*")
    step = checkpoint.name.partition("-")[2]
    again = f"grpo train --num_processes 1 sft.yaml trainer.output_dir={second} trainer.resume_from_checkpoint=true"
    assert said.endswith(f"stopped at step {step} (SIGTERM)\ncontinue with: {again}\n")
    assert launcher.returncode == 128 + signal.SIGTERM and not (second / "model.safetensors").exists()
    subprocess.run([sys.executable, "-m", *again.split()], cwd=tmp_path, env=environment, check=True)
    a, b = weights(tmp_path / "run"), weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [line["step"] for line in metrics(second)] == [*range(1, 121)]


def test_a_checkpoint_of_other_rows_or_of_other_processes_is_refused(tiny_llama, rows, tmp_path):
    folder = run_sft(recipe(tiny_llama, tmp_path / "out", rows, save_steps=2))
    basis = folder / "checkpoint-2" / "trainer_state" / "basis.json"
    saved = json.loads(basis.read_text())
    assert (saved["processes"], saved["gradient_accumulation_steps"]) == (1, 1)
    basis.write_text(json.dumps({**saved, "processes": 2}))  # as two processes leave it
    again = {"max_steps": 4, "save_steps": 2, "resume_from_checkpoint": True}
    message = (
        r"checkpoint-2 is of 2 processes with trainer.gradient_accumulation_steps=1, and this run has 1 with 1: "
        r".* Launch 2 processes, or keep the product at 2\."
    )
    with pytest.raises(RefusedError, match=message):
        run_sft(recipe(tiny_llama, folder, rows, **again))
    run_sft(recipe(tiny_llama, folder, rows, **again, gradient_accumulation_steps=2))
    write(Path(rows), [{**ROWS[0], "completion": "another completion"}, *ROWS[1:]])
    again |= {"max_steps": 5, "gradient_accumulation_steps": 2}
    with pytest.raises(
        RefusedError, match=r"data: the rows have changed since .*checkpoint-4, so some would be taken tw"
    ):
        run_sft(recipe(tiny_llama, folder, rows, **again))
    run_sft(recipe(tiny_llama, folder, rows, **again, allow_changes=["data.sources"]))
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_v3, rows, tmp_path):
    one = run_sft(recipe(tiny_v3, tmp_path / "one", rows, balance_bias_update_speed=0.01))
    settings = {"per_device_train_batch_size": 2, "balance_bias_update_speed": 0.01}
    file = tmp_path / "recipe.json.yaml"
    file.write_text(recipe(tiny_v3, tmp_path / "two", rows, **settings).model_dump_json())
    command = [sys.executable, "-m", "grpo", "train", "--cpu", "--num_processes", "2", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    for a, b in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["num_tokens"] == b["num_tokens"] and a["moe/load"] == b["moe/load"]


LONG = [{"prompt": "x" * 600, "completion": "y"}]


@pytest.mark.parametrize(
    ("found", "data", "message"),
    [
        ([{"prompt": "a", "answer": "b"}], {}, r"no column 'completion'. It has: prompt, answer. Name the one"),
        ([{"question": "a", "completion": "b"}], {}, r"no column 'prompt'"),
        ([{"prompt": "a", "completion": ""}], {}, r"none of its 1 rows can be used \(1 left out: 1 empty"),
        ([{"prompt": "a", "completion": 3}], {}, r"1 left out: 1 malformed.*must be a text\)\. Correct the rows\.$"),
        (
            LONG,
            {"max_length": 100},
            r"none of its 1 rows can be used \(1 left out: 1 too long.*Raise data.max_length=100",
        ),
        (LONG, {}, r"the longest row has 604 tokens, and .* has a context of 512 \(max_position_embeddings\)"),
        ([], {}, r"the file is empty"),
    ],
    ids=["completion", "prompt", "empty", "malformed", "all too long", "context", "no rows"],
)
def test_rows_that_cannot_be_learnt_are_refused(tiny_llama, tmp_path, found, data, message):
    source = write(tmp_path / "rows.jsonl", found)
    with pytest.raises(RefusedError, match=message):
        run_sft(recipe(tiny_llama, tmp_path / "out", source, data))


def test_long_rows_are_left_out_and_counted(tiny_llama, tmp_path, capsys):
    source = write(tmp_path / "rows.jsonl", [*ROWS, *LONG])
    run_sft(recipe(tiny_llama, tmp_path / "out", source, {"max_length": 100}))
    assert (
        "24 rows per epoch from rows.jsonl/train, which has 24 usable (1 left out: 1 too long"
        in capsys.readouterr().out
    )


def test_what_cannot_be_right_is_refused(tiny_llama, tmp_path, rows):
    with pytest.raises(RefusedError, match=r"nowhere.jsonl'?: no such file"):
        run_sft(recipe(tiny_llama, tmp_path / "out", str(tmp_path / "nowhere.jsonl")))
    (tmp_path / "source.py").write_text("def traces(seed):\n    yield from []\n")
    for name, message in (("trace", r"does not define 'trace'. Did you mean 'traces'"), ("traces", "has no rows")):
        with pytest.raises(RefusedError, match=message):
            run_sft(recipe(tiny_llama, tmp_path / "out", f"{tmp_path}/source.py:{name}", {"max_rows": 4}))
    with pytest.raises(RefusedError, match="has no router with a balance bias"):
        run_sft(recipe(tiny_llama, tmp_path / "out", rows, balance_bias_update_speed=0.001))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no EOS token"):
        load_mixture(SFTData(sources=[{"dataset_name": rows}]), tokenizer, seed=0, base_dir=Path())


def test_one_process_takes_one_of_several_gpus(tiny_llama, tmp_path, monkeypatch):
    """Else transformers would spread the model over all, which TRL refuses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    found = _arguments(recipe(tiny_llama, tmp_path, "rows.jsonl")).n_gpu
    AcceleratorState._reset_state(reset_partial_state=True)  # later tests are on the CPU again
    assert found == 1


def test_settings_are_strict():
    source = {"dataset_name": "a.jsonl"}
    with pytest.raises(ValidationError, match="give every source a weight"):
        SFTData(sources=[source, {**source, "weight": 1.0}])
    with pytest.raises(ValidationError, match="may yield rows without end"):
        SFTData(sources=[{"dataset_name": "a.py:rows"}])
    with pytest.raises(ValidationError, match="it takes none"):
        SFTTrainerConfig(lr_scheduler_type="linear", lr_scheduler_kwargs={"min_lr_rate": 0.1})
    assert SFTTrainerConfig().scheduler_arguments == {"min_lr_rate": 0.1}

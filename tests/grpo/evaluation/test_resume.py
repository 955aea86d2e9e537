"""Interrupted and repeated evaluations: what is resumed, extended, refused or repeated exactly."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo.evaluation.regrade import regrade
from grpo.evaluation.results.compare import compare_runs
from grpo.evaluation.results.samples import as_line
from grpo.evaluation.run import run_evaluation
from grpo.recipe.errors import RunError
from grpo.report.lock import lock
from rollout.engines.hf import HFEngine
from tests.grpo.evaluation.conftest import SUMS, recipe, samples


def test_killed_evaluation_resumes_and_ends_with_the_same_samples(
    tiny_llama: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_evaluation(recipe(tiny_llama, sums, output=str(sums.parent / "whole")))
    generate, sampled = HFEngine.generate, []

    def dying(engine: HFEngine, prompts: Any, sampling: Any) -> Any:
        for number, group in enumerate(generate(engine, prompts, sampling)):
            if number == 4:
                raise KeyboardInterrupt
            yield group

    def counting(engine: HFEngine, prompts: Any, sampling: Any) -> Any:
        sampled.extend(prompt.problem.id for prompt in prompts)
        return generate(engine, prompts, sampling)

    monkeypatch.setattr(HFEngine, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(recipe(tiny_llama, sums))
    kept = sums.parent / "run" / "samples.jsonl"
    there = len(kept.read_text().splitlines())
    assert 0 < there <= 4
    with kept.open("a") as file:
        file.write('{"task": "sums", "problem_id": "su')  # a partial line, as left by SIGKILL
    monkeypatch.setattr(HFEngine, "generate", counting)
    resumed = run_evaluation(recipe(tiny_llama, sums))
    assert len(sampled) == 10 - there
    assert kept.read_bytes() == (whole.folder / "samples.jsonl").read_bytes()
    assert resumed.tasks["sums"]["metrics"] == whole.tasks["sums"]["metrics"]


def test_finished_evaluation_is_extended_with_more_samples_and_problems(tiny_llama: Path, sums: Path) -> None:
    few = run_evaluation(recipe(tiny_llama, sums, limit=3))
    before = samples(few.folder)
    more = run_evaluation(recipe(tiny_llama, sums, sampling={"num_samples": 4}))
    after = samples(more.folder)
    assert len(before) == 6 and len(after) == 20
    assert all(row in after for row in before)
    assert more.tasks["sums"]["metrics"]["num_samples"] == 4
    again = run_evaluation(recipe(tiny_llama, sums, limit=3))  # generates nothing; metrics of 3 x 2 samples
    assert again.tasks["sums"]["metrics"] == few.tasks["sums"]["metrics"]
    kept = samples(again.folder)
    assert len(kept) == 20
    assert compare_runs(again.folder, again.folder).splitlines()[-1].split("|")[2].strip() == "3"
    assert regrade(again.folder).results.tasks["sums"]["metrics"] == few.tasks["sums"]["metrics"]
    assert samples(again.folder) == kept, "unreported samples are kept"


def test_interrupted_evaluation_cannot_be_compared_or_regraded(tiny_llama: Path, sums: Path) -> None:
    done = run_evaluation(recipe(tiny_llama, sums))
    with (done.folder / "samples.jsonl").open("r+") as file:
        file.truncate(len("".join(file.readlines()[:7]).encode()))
    for again in (lambda: compare_runs(done.folder, done.folder), lambda: regrade(done.folder)):
        with pytest.raises(ValueError, match=r"3 samples of sums are missing.*Run the same grpo eval again"):
            again()
    run_evaluation(recipe(tiny_llama, sums))
    assert regrade(done.folder).results.tasks["sums"]["metrics"] == done.tasks["sums"]["metrics"]


def test_changed_weights_under_the_same_path_are_rejected(tiny_llama: Path, sums: Path) -> None:
    model = sums.parent / "model"
    shutil.copytree(tiny_llama, model)
    run_evaluation(recipe(model, sums, limit=1))
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    run_evaluation(recipe(model, sums, limit=2))
    weights.write_bytes(content[:-4] + bytes(4))  # changes one number in the last tensor
    with pytest.raises(ValueError, match="has samples from other weights than those now in"):
        run_evaluation(recipe(model, sums, limit=2))


def test_changed_settings_or_prompts_are_rejected(tiny_llama: Path, sums: Path) -> None:
    run_evaluation(recipe(tiny_llama, sums, limit=1))
    with pytest.raises(ValueError, match=r"sampling.temperature: 1.0, now 0.5"):
        run_evaluation(recipe(tiny_llama, sums, sampling={"temperature": 0.5}))
    with pytest.raises(ValueError, match=r"engine.base_url: 'http://localhost:8000/v1', now 'http://other:8000/v1'"):
        run_evaluation(recipe(tiny_llama, sums, engine={"name": "server", "base_url": "http://other:8000/v1"}))
    with pytest.raises(ValueError, match=r"engine.vllm_options: \{\}, now \{'quantization': 'fp8'\}"):
        run_evaluation(recipe(tiny_llama, sums, engine={"name": "hf", "vllm_options": {"quantization": "fp8"}}))
    (sums.parent / "sums.jsonl").write_text("".join(json.dumps({**row, "question": "what?"}) + "\n" for row in SUMS))
    with pytest.raises(ValueError, match="was sampled from a different prompt"):
        run_evaluation(recipe(tiny_llama, sums))


def test_changed_grading_or_reference_answers_are_rejected(tiny_llama: Path, sums: Path) -> None:
    run_evaluation(recipe(tiny_llama, sums))
    sums.write_text(sums.read_text() + "options: {answer_in: free_text}\n")
    with pytest.raises(ValueError, match=r"graded by .*'options': \{\}.*, now .*'free_text'.*grpo regrade"):
        run_evaluation(recipe(tiny_llama, sums))
    regrade(sums.parent / "run", options={"answer_in": "free_text"})
    assert run_evaluation(recipe(tiny_llama, sums)).tasks["sums"]["options"] == {"answer_in": "free_text"}
    rows = [{**row, "gold": "99"} for row in SUMS]
    (sums.parent / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"sums/0 .*had different columns \(such as its reference answer\)"):
        run_evaluation(recipe(tiny_llama, sums))


def test_samples_that_were_graded_again_elsewhere_are_not_taken_for_this_models(tiny_llama: Path, sums: Path) -> None:
    run_evaluation(recipe(tiny_llama, sums))
    regrade(sums.parent / "run", output=sums.parent / "copy")
    with pytest.raises(ValueError, match=r"has samples of another evaluation, graded again\. Choose another output"):
        run_evaluation(recipe(tiny_llama, sums, output=str(sums.parent / "copy")))


def test_a_reward_reads_the_same_prompt_when_it_grades_again(tiny_llama: Path, sums: Path) -> None:
    """The problem's own, without the instruction of the prompt."""
    (sums.parent / "asks.py").write_text(
        "def asks(prompts, completions, **columns):\n    return [1.0 * ('Give' not in str(one)) for one in prompts]\n"
    )
    sums.write_text(sums.read_text() + f"reward: {sums.parent}/asks.py:asks\n")
    assert "Give a number" in sums.read_text()
    done = run_evaluation(recipe(tiny_llama, sums))
    assert done.tasks["sums"]["metrics"]["pass@1"] == 1.0
    assert not regrade(done.folder).changes


def test_greedy_evaluation_repeats_byte_for_byte(tiny_llama: Path, sums: Path) -> None:
    def run(name: str) -> bytes:
        greedy = {"num_samples": None, "temperature": 0.0}
        return (
            run_evaluation(recipe(tiny_llama, sums, sampling=greedy, output=str(sums.parent / name)))
            .folder.joinpath("samples.jsonl")
            .read_bytes()
        )

    first = run("first")
    assert first == run("second")
    assert first.count(b"\n") == 5  # one sample each, as greedy samples never differ


def test_a_folder_that_another_evaluation_writes_to_is_refused(tiny_llama: Path, sums: Path) -> None:
    held = lock(sums.parent / "run")
    assert held is not None
    with pytest.raises(ValueError, match=rf"run' is in use by process {os.getpid()}, and only one evaluation"):
        run_evaluation(recipe(tiny_llama, sums))
    os.close(held)
    assert len(samples(run_evaluation(recipe(tiny_llama, sums)).folder)) == 10


def test_results_that_were_cut_off_do_not_stop_a_repetition(tiny_llama: Path, sums: Path) -> None:
    whole = run_evaluation(recipe(tiny_llama, sums))
    before = (whole.folder / "samples.jsonl").read_bytes()
    (whole.folder / "results.json").write_text("")
    with pytest.raises(ValueError, match=r"results.json is not whole .*Run the same grpo eval again"):
        compare_runs(whole.folder, whole.folder)
    again = run_evaluation(recipe(tiny_llama, sums))
    assert again.tasks["sums"]["metrics"] == whole.tasks["sums"]["metrics"]
    assert (whole.folder / "samples.jsonl").read_bytes() == before
    assert not list(whole.folder.glob("*.draft"))


def test_a_full_disk_ends_an_evaluation_with_a_sentence_and_what_was_written_is_kept(
    tiny_llama: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def append(file: Any, text: str, errors: str) -> None:
        if len(written) == 3:
            file.write(text[:9].encode())
            raise OSError(28, "No space left on device")
        written.append(text)
        file.write(text.encode(errors=errors))

    monkeypatch.setattr("grpo.evaluation.results.samples.append", append)
    with pytest.raises(RunError, match=r"samples.jsonl cannot be written \(No space left on device\). Free disk space"):
        run_evaluation(recipe(tiny_llama, sums))
    monkeypatch.undo()
    run_evaluation(recipe(tiny_llama, sums))
    assert set(written) <= set(map(as_line, samples(sums.parent / "run"))) and len(samples(sums.parent / "run")) == 10

"""A run's page: metrics are shown, hostile text is escaped, long runs fit, and a browser draws it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grpo.report.page.write import thin_curves, thin_load, thin_samples, write_page
from grpo.report.records import compare, held_out_counts, held_out_keys

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}} & \u2028 end"


def write_run(folder: Path, metrics: list[dict], samples: list[dict] | None = None, recipe: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if samples is not None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe)
    return folder


def sample(step: int, text: str, prompt: str = "1+1=?", completions: int = 2) -> dict:
    completion = {
        "text": text,
        "num_tokens": 3,
        "finish_reason": "stop",
        "reward": 1.0,
        "rewards": {"accuracy": 1.0},
        "advantage": 0.5,
    }
    return {"step": step, "problem_id": "p", "prompt": prompt, "columns": {}, "completions": [completion] * completions}


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


METRICS = [
    {"step": 0, "eval/pass@1": 0.217, "eval/pass@1_low": 0.187, "eval/pass@1_high": 0.247, "eval/pass@4": 0.5},
    {"step": 1, "reward": 0.344, "time/generate": 60.0, "moe/load": [[0.5, 0.25, 0.25, 0.0]]},
    {"step": 2, "reward": 0.75, "time/generate": 60.0, "moe/load": [[0.25, 0.25, 0.25, 0.25]]},
    {"step": 2, "eval/pass@1": 0.845, "eval/pass@1_low": 0.815, "eval/pass@1_high": 0.875, "eval/pass@4": 0.9},
]
RECIPE = "model: {model_name_or_path: /somewhere/v3_base}\ntrainer: {max_steps: 40, learning_rate: 0.0002}\n"


def test_page_shows_base_to_trained_and_the_settings(tmp_path: Path) -> None:
    path = write_page(write_run(tmp_path / "countdown-run", METRICS, recipe=RECIPE))
    page = path.read_text()
    assert path.name == "index.html"
    for text in (
        "<title>countdown-run</title>",
        '<span class="from">0.217 →</span> <strong>0.845</strong>',
        "0.187–0.247</span> → <span>0.815–0.875",
        '<span class="from">0.344 →</span> <strong>0.750</strong>',
        "model v3_base · learning rate 0.0002 · step 2 of 40 · 2.0 minutes",
    ):
        assert text in page
    assert embedded(page)["train"]["series"]["reward"] == [0.344, 0.75]


def test_interrupted_run_with_only_metrics_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, METRICS[1:2])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    data = embedded(write_page(run).read_text())
    assert data["train"]["steps"] == [1]
    assert data["samples"] == []


def test_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        write_page(tmp_path)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    recipe = f"report: {json.dumps({'run_name': HOSTILE})}\nmodel: {json.dumps({'model_name_or_path': HOSTILE})}\n"
    page = write_page(write_run(tmp_path, METRICS, [sample(1, HOSTILE, HOSTILE)], recipe)).read_text()
    assert "<script>alert" not in page and "<img" not in page
    assert len(re.findall(r"</script", page, re.IGNORECASE)) == 2  # the page's own scripts
    data = embedded(page)
    assert data["samples"][0]["completions"][0]["text"] == HOSTILE
    assert data["samples"][0]["prompt"] == HOSTILE
    assert data["recipe"] == recipe


def test_page_loads_no_external_resources(tmp_path: Path) -> None:
    page = write_page(write_run(tmp_path, METRICS)).read_text()
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"'\s]*", page)) == {"http://www.w3.org/2000/svg"}  # a namespace, not loaded
    assert not re.search(r"<link|<img|\bsrc=|@import|url\(|innerHTML", page)


def test_page_of_a_long_run_is_bounded_and_keeps_extremes(tmp_path: Path) -> None:
    experts = [[1 / 64] * 64] * 6
    metrics = [
        {"step": step, "sampling/sampling_logp_difference/max": 9.0 if step == 501 else 0.001, "moe/load": experts}
        | {f"figure/{i}": 0.123456789 * i + step for i in range(60)}
        for step in range(1, 1001)
    ]
    samples = [sample(step, f"{step}: " + "thinking " * 300, completions=16) for step in range(1, 1001)]
    page = write_page(write_run(tmp_path, metrics, samples)).read_text()
    assert len(page.encode()) < 2_000_000
    data = embedded(page)
    assert max(data["train"]["series"]["sampling/sampling_logp_difference/max"]) == 9.0
    assert data["train"]["steps"][-1] == 1000
    shown = [row["step"] for row in data["samples"]]
    assert shown[0] == 1 and shown[-1] == 1000 and len(shown) >= 8


def test_neighbouring_steps_are_averaged_and_gaps_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.report.page.write.MAX_POINTS", 2)
    rows = [
        {"step": 1, "reward": 0.0},
        {"step": 2, "reward": 1.0, "kl": 3.0},
        {"step": 3, "kl": None},
        {"step": 4, "kl": 1.0},
    ]
    assert thin_curves(rows) == {"steps": [2, 4], "series": {"kl": [3.0, 1.0], "reward": [0.5, None]}}


def test_expert_load_is_a_percentage_of_balance() -> None:
    assert thin_load(METRICS) == {"steps": [1, 2], "loads": [[[200, 100, 100, 0]], [[100, 100, 100, 100]]]}
    assert thin_load(METRICS[:1]) is None


def test_long_texts_keep_head_and_tail(tmp_path: Path) -> None:
    run = write_run(tmp_path, METRICS, [sample(1, "HEAD" + "x" * 2_000_000 + "TAIL", completions=1)])
    (row,) = thin_samples(run / "samples.jsonl")
    text = row["completions"][0]["text"]
    assert text.startswith("HEAD") and text.endswith("TAIL") and "characters omitted" in text and len(text) < 1_100_000


def test_card_marks_the_last_finite_value_when_nulls_follow(tmp_path: Path) -> None:
    rows = [{"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.75}, {"step": 3, "reward": None}]
    page = write_page(write_run(tmp_path, rows)).read_text()
    assert '<span class="from">0.250 →</span> <span>0.750</span>' in page and "last finite value, step 2" in page
    page = write_page(write_run(tmp_path, rows[:2])).read_text()
    assert "<strong>0.750</strong>" in page and "last finite value" not in page


def test_a_banner_names_the_error_and_the_diagnosis_follows(tmp_path: Path) -> None:
    rewards = f"rewards: [{{name: {json.dumps(HOSTILE)}, function: format}}]\n"
    rows = [{"step": step, "reward": 0.5, f"rewards/{HOSTILE}/mean": 0.0} for step in range(1, 11)]
    run = write_run(tmp_path, rows, recipe=rewards)
    (run / "error.json").write_text(json.dumps({"step": 10, "error": f"RewardError: {HOSTILE}"}) + "\n")
    page = write_page(run).read_text()
    error = "<b>Stopped after step 10.</b> RewardError: &lt;/script&gt;"
    assert page.index(error) < page.index("<summary>The reward &#x27;&lt;/script&gt;")
    assert "<img" not in page and "last finite value, step 10" in page
    (run / "error.json").unlink()
    assert "Stopped" not in write_page(run).read_text()


def test_counts_of_an_evaluation_are_a_caption_not_metrics() -> None:
    row = {"step": 0, "eval/gsm8k/pass@1": 0.5, "eval/gsm8k/num_problems": 30, "eval/gsm8k/num_samples": 4}
    assert held_out_keys({**row, "eval/gsm8k/num_unreadable": 1}) == ["eval/gsm8k/pass@1"]
    assert held_out_counts({**row, "eval/gsm8k/num_unreadable": 1}) == ["gsm8k: 30 problems × 4 samples (1 ungradable)"]
    assert held_out_counts({"eval/num_problems": 64, "eval/num_samples": 2, "eval/num_unreadable": 0}) == [
        "64 problems × 2 samples"
    ]
    assert [one.name for one in compare([row])] == ["gsm8k/pass@1"]


needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")


def drawn(page: Path, profile: Path) -> str:
    """The document after a browser ran the page's scripts, without errors."""
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    shown = subprocess.run(
        [*browser, "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Uncaught" not in shown.stderr
    return shown.stdout


def figure(document: str, title: str) -> str:
    """A chart's HTML."""
    return next(part for part in document.split("<figure") if f"<h3>{title} " in part)


@needs_browser
def test_browser_draws_curves_and_samples(tmp_path: Path) -> None:
    path = write_page(write_run(tmp_path, METRICS, [sample(2, f"<think>{HOSTILE}</think><answer>2</answer>")], RECIPE))
    document = drawn(path, tmp_path / "profile")
    assert document.count("<svg") >= 3 and document.count("<canvas") == 1 and "step 2" in document
    assert '<span class="answer">2</span>' in document
    assert "&lt;script&gt;alert(1)" in document and "<script>alert" not in document and "<img" not in document


@needs_browser
def test_browser_draws_around_nulls_and_folds_equal_completions(tmp_path: Path) -> None:
    nulls = [{"step": i, "reward": 0.5, "entropy": 0.25 * i if i in (1, 3, 4) else None} for i in range(1, 6)]
    samples = [sample(5, "The answer\nis 2", completions=3)]
    samples[0]["completions"] += [
        dict(samples[0]["completions"][0], text="the  answer is 2 ", num_tokens=5, reward=None)
    ]
    samples[0]["completions"] += [dict(samples[0]["completions"][0], text="the  answer is 2 ", num_tokens=5)]
    document = drawn(write_page(write_run(tmp_path, nulls, samples)), tmp_path / "profile")
    entropy = figure(document, "Entropy")
    assert entropy.count("<circle") == 1  # step 1 stands alone
    assert re.search(r' d="M[\d.,]+M[\d.,]+L[\d.,]+"', entropy)
    assert '<b class="stale">1 (step 4)</b>' in entropy
    assert re.search(r' d="M[\d.,]+(L[\d.,]+){4}"', figure(document, "Reward"))
    assert "group 1 · reward 1<" in document  # without the completion that has no reward
    assert document.count("<article") == 2 and ">×4</span>" in document and "3–5 tokens" in document

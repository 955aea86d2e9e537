"""Which architectures train right: two steps on a tiny random model of each, trainer against engine.

    python benchmarks/models.py [--engine vllm] [--write docs/models.md] [NAME …]

A row is right when the mean difference of log-probs stays below 1e-5 at both steps, or refused when the run ends before
the first step with one sentence. Anything else is a fault.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BASE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = BASE | {"num_key_value_heads": 2, "head_dim": 32}
EXPERTS = GROUPED | {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
MLA = BASE | {
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
OPENAI = {"n_embd": 64, "n_layer": 2, "n_head": 2}
# model_type -> its configuration, vocabulary and special tokens aside
MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v3": MLA | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True},
    "deepseek_v32": MLA
    | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True}
    | {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 2048},
    "deepseek_v4": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 32}
    | {"qk_rope_head_dim": 8, "q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 16, "hc_mult": 2}
    | {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 512, "compress_ratios": [0, 4, 128, 4]}
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hash_layers": 1}
    | {"topk_method": "noaux_tc"},
    "deepseek_v2": MLA | {"topk_method": "greedy", "n_group": 1},
    "llama": GROUPED,
    "mistral": GROUPED,
    "ministral": GROUPED | {"sliding_window": 128},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen2": BASE | {"num_key_value_heads": 2},
    "qwen2_moe": EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3": GROUPED,
    "qwen3_moe": EXPERTS | {"num_experts": 4},
    "gemma": GROUPED,
    "gemma2": GROUPED | {"query_pre_attn_scalar": 32},
    "gemma3_text": GROUPED | {"query_pre_attn_scalar": 32},
    "gpt2": OPENAI,
    "gptj": OPENAI | {"rotary_dim": 16},
    "gpt_neox": BASE,
    "gpt_oss": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": BASE | {"num_key_value_heads": 2},
    "olmoe": BASE | {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "phi": BASE,
    "phi3": BASE | {"num_key_value_heads": 2},
    "smollm3": BASE | {"num_key_value_heads": 2},
    "starcoder2": BASE | {"num_key_value_heads": 2},
    "granite": BASE | {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "cohere2": GROUPED | {"logit_scale": 0.25},
    "glm4": GROUPED,
    "glm4_moe": EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "stablelm": BASE | {"num_key_value_heads": 2},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"word_embed_proj_dim": 64},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome("llama", "hf", "right", "3e-07")"""

    model_type: str
    engine: str
    verdict: str  # right, refused or FAULT
    detail: str


def make(model_type: str, folder: Path) -> None:
    """A random model whose attention and head are sharp enough that a mistake shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/v3_base")
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer) + 8, **ids, **MODELS[model_type])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5)
        elif "head" in name or "embed" in name:
            parameter.data.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(model_type: str, engine: str, scratch: Path) -> Outcome:
    """Two steps of the embedded recipe with random rewards, so that every group has a gradient."""
    output = scratch / f"{engine}-{model_type}"
    command = [
        *(sys.executable, "-m", "grpo", "train", "recipes/r1_zero.yaml"),
        f"model.model_name_or_path={scratch / model_type}",
        f"rollout.engine={engine}",
        "rollout.problems_per_step=4",
        "rollout.num_generations=4",
        "rollout.max_completion_length=24",
        "rollout.kv_cache_gib=0.1",
        "rewards=[{function: random}]",
        "algorithm.max_logp_difference=null",
        "trainer.max_steps=2",
        "trainer.learning_rate=1e-3",
        f"trainer.output_dir={output}",
        "evaluation={}",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_MIXED_PRECISION": "no", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode == 0:
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        largest = max(row["sampling/sampling_logp_difference/mean"] for row in rows)
        return Outcome(model_type, engine, "right" if largest <= 1e-5 else "FAULT", f"{largest:.0e}")
    samples = output / "samples.jsonl"
    began = samples.exists() and samples.stat().st_size > 0  # a step that trains wrongly ends with code 2 as well
    refused = done.returncode == 2 and "Traceback" not in done.stderr and not began
    reason = re.sub(re.escape(str(scratch)) + r"/?", "", said[-1])
    return Outcome(model_type, engine, "refused" if refused else "FAULT", reason)


def outcomes(names: list[str], engines: list[str]) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        scratch = Path(folder)
        for name in names:
            make(name, scratch / name)
        jobs = [threads.submit(run, name, engine, scratch) for name in names for engine in engines]
        for job in jobs:
            yield job.result()


def table(found: list[Outcome], engines: list[str]) -> str:
    """The results as Markdown, and what the refused ones were told."""
    cells = {(o.model_type, o.engine): o.detail if o.verdict == "right" else o.verdict for o in found}
    lines = ["| model_type | " + " | ".join(engines) + " |", "| --- |" + " --- |" * len(engines)]
    names = dict.fromkeys(o.model_type for o in found)
    lines += [f"| {name} | " + " | ".join(cells[name, engine] for engine in engines) + " |" for name in names]
    reasons = [f"- {o.model_type}, {o.engine}: {o.detail}" for o in found if o.verdict != "right"]
    return "\n".join([*lines, "", *reasons]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--engine", action="append", choices=["hf", "vllm"], help="default: both")
    parser.add_argument("--write", type=Path, help="a page whose table is replaced")
    given = parser.parse_args()
    engines = given.engine or ["hf", "vllm"]
    found = []
    for outcome in outcomes(given.names, engines):
        found.append(outcome)
        print(f"{outcome.model_type:<14} {outcome.engine:<5} {outcome.verdict:<8} {outcome.detail[:300]}", flush=True)
    if given.write:
        before, _, rest = given.write.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end -->\n")[2]
        given.write.write_text(f"{before}<!-- table -->\n{table(found, engines)}<!-- end -->\n{after}")
    sys.exit(any(outcome.verdict == "FAULT" for outcome in found))


if __name__ == "__main__":
    main()

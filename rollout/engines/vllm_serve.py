"""vLLM's OpenAI-compatible server with the settings its in-process engine has: `grpo serve`.

Plain `vllm serve` fails on CPU for models like the embedded base: its latent-attention kernel has other sizes, and
its rotary kernel is wrong.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from transformers import AutoConfig

from rollout.engines.vllm_setup import MAX_BATCHED_TOKENS, check_routing_keys, import_vllm, mla_setting


def serve(model_path: str, options: Sequence[str]) -> NoReturn:
    """Become the server.

    Args:
        model_path: Hugging Face folder or Hub name.
        options: vLLM's own, such as `--port 8000 --max-model-len 4096`; they win over the ones set here.

    Raises:
        ValueError: vLLM is not installed, or the model's config lacks keys vLLM needs.
    """
    config = AutoConfig.from_pretrained(model_path)
    check_routing_keys(model_path, config)
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **os.environ} | mla_setting(config)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_path]
    command += ["--generation-config", "vllm"]
    if import_vllm():
        longest = getattr(config.get_text_config(), "max_position_embeddings", MAX_BATCHED_TOKENS)
        command += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
        command += ["--max-num-batched-tokens", str(max(longest, MAX_BATCHED_TOKENS))]
        command += ["--compilation-config", json.dumps({"custom_ops": ["none"]})]
    environment.pop("VLLM_LOGGING_LEVEL", None)  # a server says where it listens
    sys.stdout.flush()
    os.execve(sys.executable, [*command, *options], environment)

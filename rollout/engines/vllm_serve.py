"""vLLM's OpenAI-compatible server with the settings its in-process engine has: `grpo serve`.

Plain `vllm serve` fails on CPU for models like the embedded base: its latent-attention kernel has other sizes, and
its rotary kernel is wrong.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from transformers import AutoConfig

from rollout.engines.servers.plugin import BACKEND
from rollout.engines.vllm_setup import (
    IEEE,
    MAX_BATCHED_TOKENS,
    check_adapters,
    check_model,
    import_vllm,
    mla_setting,
)

FOR_TRAINING = "--for-training"  # our one option
ADAPTERS = "--enable-lora"
# Options that may ask for several processes.
SEVERAL = ("-tp", "-pp", "-dp", "-pcp", "-dcp", "--tensor-par", "--pipeline-par", "--data-par", "--prefill-context")
SEVERAL += ("--decode-context", "--distributed-exec", "--config")


def serve(model_path: str, options: Sequence[str]) -> NoReturn:
    """Become the server.

    Args:
        model_path: Hugging Face folder or Hub name.
        options: vLLM's own, such as `--port 8000 --max-model-len 4096`, which win over the ones set here; and
            `--for-training`: take weights from a trainer, or with `--enable-lora` adapters. It opens vLLM's development
            endpoints, which let anyone who reaches the port replace the weights or run code: only on a trusted network.

    Raises:
        ValueError: vLLM is not installed, or the model's config lacks keys vLLM needs.
    """
    command, environment = server_command(model_path, options)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def server_command(
    model_path: str,
    options: Sequence[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    share: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[str], dict[str, str]]:
    """The command line of the server and its environment. Arguments and errors as in `serve`.

    share: variables that say which part of the machine it gets.
    """
    config = AutoConfig.from_pretrained(model_path, revision=revision, trust_remote_code=trust_remote_code)
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **dict([IEEE])}
    environment = {**defaults, **os.environ, **share}
    environment |= mla_setting(config)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_path]
    command += ["--generation-config", "vllm"]
    command += ["--revision", revision] if revision else []
    command += ["--trust-remote-code"] if trust_remote_code else []
    on_cpu = import_vllm()
    check_model(model_path, config, on_cpu=on_cpu)
    if on_cpu:
        longest = getattr(config.get_text_config(), "max_position_embeddings", MAX_BATCHED_TOKENS)
        command += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
        command += ["--max-num-batched-tokens", str(max(longest, MAX_BATCHED_TOKENS))]
        command += ["--compilation-config", json.dumps({"custom_ops": ["none"]})]
        several = any(option.replace("_", "-").startswith(SEVERAL) for option in options)
        if environment.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind" and not several:
            # The model in the scheduler's process: one of its own, which vLLM needs to bind threads to cores, would be
            # polled without rest and take a core from a trainer.
            command += ["--distributed-executor-backend", "uni"]
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # or vLLM replaces "uni" by "mp"
    if ADAPTERS in options:
        check_adapters(model_path, config, on_cpu=on_cpu)
    if FOR_TRAINING in options:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # /v1/load_lora_adapter, if there are to be any
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # /update_weights and its companions
        command += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs"]
        command += ["--weight-transfer-config", json.dumps({"backend": BACKEND})]
    environment.pop("VLLM_LOGGING_LEVEL", None)  # a server says where it listens
    return [*command, *(option for option in options if option != FOR_TRAINING)], environment

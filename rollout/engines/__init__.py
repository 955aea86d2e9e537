"""Rollout engines: interfaces in `base`, implementations on vLLM, transformers and an OpenAI-compatible server.

`build` creates an engine by name. No rewards, no training. Only `vllm` and `vllm_setup` import vLLM.
"""

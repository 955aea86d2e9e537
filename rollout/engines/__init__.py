"""Rollout engines: the protocol in `base`, and vLLM, transformers and an OpenAI-compatible server behind it.

Knows no reward and no trainer. vLLM is imported in `vllm` alone.
"""

"""vLLM servers that train: generation over HTTP with log-probs, weights over vLLM's weight-transfer API.

`engine` is the Engine and Publisher, `client` one server, `transfer` how weights travel, `plugin` the part of it that
runs inside vLLM, `start` servers of our own. Evaluating on any OpenAI-compatible server is `rollout.engines.server`.
"""

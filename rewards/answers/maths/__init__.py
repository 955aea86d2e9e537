"""Reading and comparing mathematical answers: text -> nodes -> equal or not.

`normalize` rewrites spellings, `parse` reads nodes, `value` (with `arithmetic`) computes scalars, `compare` knows what
equals what. Every step is bounded by `limits`; nothing is ever evaluated as code. Used inside the processes of
`rewards.runner.workers`.
"""

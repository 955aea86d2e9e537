"""Running untrusted code. docs/sandbox.md describes it; the code reward is its only user.

limits: what a run may use. isolation: the levels. box: one sandbox. running: a job in a box. pool: warm boxes.
local, remote: backends that run tests. probe: the self-test. inside/: the code that runs in the sandbox.
"""

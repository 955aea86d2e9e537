LOSSES: dict[str, str] = {
    "grpo": "grpo.algorithm.loss:grpo",
    "dr_grpo": "grpo.algorithm.loss:dr_grpo",
    "dapo": "grpo.algorithm.loss:dapo",
    "bnpo": "grpo.algorithm.loss:bnpo",
}

"""Whether a run's models are sharded over its processes, and over which: the recipe's word, or accelerate's launcher's.

accelerate itself never shards here: it ignores its plugin on CPU, and knows neither our head nor our checkpoints.
"""

import os
from collections.abc import Mapping

from accelerate import Accelerator
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from grpo.launch.processes import PATIENCE
from grpo.recipe.config import TrainerConfig
from grpo.recipe.load import RecipeError

OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def launched_with_fsdp2(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch --use_fsdp --fsdp_version 2` started this process.

    Raises:
        RecipeError: accelerate was asked for another way to shard.
    """
    wanted = [name for variable, name in OTHERS.items() if environ.get(variable, "").lower() == "true"]
    fsdp = environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if fsdp and environ.get("FSDP_VERSION", "1") != "2":
        wanted.append("FSDP version 1")
    if wanted:
        raise RecipeError(
            f"accelerate was configured for {wanted[0]}: models are sharded by FSDP2 here. Set trainer.sharding=fsdp2, "
            "or launch with `--use_fsdp --fsdp_version 2`."
        )
    return fsdp


def process_mesh(trainer: TrainerConfig, accelerator: Accelerator) -> DeviceMesh | None:
    """The processes that models are sharded over, [shards] or [replicas, shards]; None: every process holds all.

    Raises:
        RecipeError: the processes cannot be divided into the recipe's replicas, or nothing is to be sharded.
    """
    replicas, processes, launched = trainer.sharding_replicas, accelerator.num_processes, launched_with_fsdp2()
    if launched and os.environ.get("FSDP_OFFLOAD_PARAMS") == "true" and not trainer.offload_params:
        raise RecipeError("accelerate's --fsdp_offload_params is not read: set trainer.offload_params=true.")
    is_sharded = (launched or trainer.sharding == "fsdp2") and processes > replicas
    if trainer.offload_params and not is_sharded:
        raise RecipeError(
            "trainer.offload_params=true: only what fsdp2 shards can be in host memory, and nothing is sharded here "
            f"(trainer.sharding={trainer.sharding}, {processes} processes, {replicas} replicas). Shard over more "
            "processes, or set it to false."
        )
    if not launched and trainer.sharding == "none":
        if replicas > 1:
            raise RecipeError(
                f"trainer.sharding_replicas={replicas} with trainer.sharding=none: every process has a whole copy "
                "already. Set trainer.sharding=fsdp2, or trainer.sharding_replicas=1."
            )
        return None
    if processes % replicas:
        raise RecipeError(
            f"trainer.sharding_replicas={replicas} with {processes} processes: every copy of the model is sharded over "
            f"equally many. Set a divisor of {processes}, or change the number of processes."
        )
    if processes == replicas:
        return None
    copies = f", in {replicas} copies" if replicas > 1 else ""
    accelerator.print(f"models are sharded over {processes // replicas} processes{copies}", flush=True)
    device = accelerator.device.type
    if replicas == 1:  # the group of all processes
        return init_device_mesh(device, (processes,), mesh_dim_names=("shard",))
    mesh = init_device_mesh(device, (replicas, processes // replicas), mesh_dim_names=("replica", "shard"))
    for group in mesh.get_all_groups():  # new ones, which start with torch's limit: 10 minutes for NCCL
        distributed_c10d._set_pg_timeout(PATIENCE, group)
    return mesh

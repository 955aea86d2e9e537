#!/bin/bash
# Trainers on the first nodes of a SLURM allocation, vLLM servers on the others.
#
#   sbatch --nodes 3 docs/launch/slurm.sh recipes/gsm8k_2x8_servers.yaml
#
# The working directory, the environment and $SHARED must be the same on all nodes. Not run: docs/scale.md.
#SBATCH --job-name=grpo
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
set -euo pipefail

RECIPE=$1
TRAINER_NODES=${TRAINER_NODES:-2}
GPUS=${GPUS:-8}                  # per node
SERVER_GPUS=${SERVER_GPUS:-1}    # per server, as `grpo plan` says
MODEL=${MODEL:-Qwen/Qwen2.5-7B}  # the recipe's
SHARED=${SHARED:-/shared}
CONTEXT=${CONTEXT:-1344}         # the recipe's max_prompt_length + max_completion_length
PORT=8000

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
TRAINERS=("${NODES[@]:0:TRAINER_NODES}")
SERVERS=("${NODES[@]:TRAINER_NODES}")
PER_NODE=$((GPUS / SERVER_GPUS))

URLS=()
for node in "${SERVERS[@]}"; do
  for ((i = 0; i < PER_NODE; i++)); do
    devices=$(seq -s, $((i * SERVER_GPUS)) $(((i + 1) * SERVER_GPUS - 1)))
    srun --nodes 1 --ntasks 1 --nodelist "$node" --overlap --output "server-$node-$i.log" \
      env CUDA_VISIBLE_DEVICES="$devices" \
      grpo serve "$MODEL" --for-training --host 0.0.0.0 --port $((PORT + i)) \
      --max-model-len "$CONTEXT" --tensor-parallel-size "$SERVER_GPUS" &
    URLS+=("http://$node:$((PORT + i))")
  done
done

for url in "${URLS[@]}"; do
  until curl --silent --fail "$url/health" > /dev/null; do sleep 5; done
done

LIST=$(IFS=,; echo "${URLS[*]}")
srun --nodes "$TRAINER_NODES" --ntasks "$TRAINER_NODES" --nodelist "$(IFS=,; echo "${TRAINERS[*]}")" --overlap --kill-on-bad-exit=1 \
  bash -c "accelerate launch --num_machines $TRAINER_NODES --num_processes $((TRAINER_NODES * GPUS)) \
    --machine_rank \$SLURM_PROCID --main_process_ip ${TRAINERS[0]} --main_process_port 29500 \
    $RECIPE 'rollout.servers={urls: [$LIST], weights_dir: $SHARED/weights}'"

# SLURM ends the servers with the job.
kill $(jobs -p)

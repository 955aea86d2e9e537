#!/bin/bash
# The same over plain ssh: one command per machine, and Ctrl-C ends all of them.
#
#   TRAINERS="host-a host-b" SERVERS="host-c" docs/launch/ssh.sh recipes/gsm8k_2x8_servers.yaml
#
# Every host needs the same working directory, an environment in .venv, $SHARED, and a login without password. Not run.
set -euo pipefail

RECIPE=$1
read -ra TRAINER_HOSTS <<< "${TRAINERS:?hosts that train}"
read -ra SERVER_HOSTS <<< "${SERVERS:?hosts that serve}"
GPUS=${GPUS:-8}                  # per host
SERVER_GPUS=${SERVER_GPUS:-1}    # per server, as `grpo plan` says
MODEL=${MODEL:-Qwen/Qwen2.5-7B}  # the recipe's
SHARED=${SHARED:-/shared}
CONTEXT=${CONTEXT:-1344}         # the recipe's max_prompt_length + max_completion_length
PORT=8000

on() {  # -tt: the remote command ends with this one
  host=$1
  shift
  ssh -tt -o BatchMode=yes "$host" "cd $(printf %q "$PWD") && PATH=\$PWD/.venv/bin:\$PATH $*" < /dev/null
}
trap 'kill $(jobs -p) 2> /dev/null' EXIT

URLS=()
for host in "${SERVER_HOSTS[@]}"; do
  for ((i = 0; i < GPUS / SERVER_GPUS; i++)); do
    devices=$(seq -s, $((i * SERVER_GPUS)) $(((i + 1) * SERVER_GPUS - 1)))
    on "$host" "CUDA_VISIBLE_DEVICES=$devices grpo serve $MODEL --for-training --host 0.0.0.0 --port $((PORT + i))" \
      "--max-model-len $CONTEXT --tensor-parallel-size $SERVER_GPUS" > "server-$host-$i.log" 2>&1 &
    URLS+=("http://$host:$((PORT + i))")
  done
done

for url in "${URLS[@]}"; do
  until curl --silent --fail "$url/health" > /dev/null; do sleep 5; done
done

LIST=$(IFS=,; echo "${URLS[*]}")
TRAINING=()
for rank in "${!TRAINER_HOSTS[@]}"; do
  on "${TRAINER_HOSTS[rank]}" "accelerate launch --num_machines ${#TRAINER_HOSTS[@]}" \
    "--num_processes $((${#TRAINER_HOSTS[@]} * GPUS)) --machine_rank $rank" \
    "--main_process_ip ${TRAINER_HOSTS[0]} --main_process_port 29500" \
    "$RECIPE 'rollout.servers={urls: [$LIST], weights_dir: $SHARED/weights}'" &
  TRAINING+=($!)
done
# The first that fails ends the script and with it all machines: the others would wait for it.
for _ in "${TRAINING[@]}"; do
  wait -n "${TRAINING[@]}" 2> /dev/null  # bash complains about those that have ended
done

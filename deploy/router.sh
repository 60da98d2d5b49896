#!/bin/bash
# Two servers on this machine behind vLLM's router (pip install vllm-router), which listens on PORT; the servers on the
# next two ports.
#   deploy/router.sh MODEL [round_robin|cache_aware [PORT]]
set -euo pipefail
model=${1:?"usage: deploy/router.sh MODEL [POLICY [PORT]]"}
policy=${2:-round_robin}
port=${3:-8000}
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
trap exit INT TERM
workers=()
for worker_port in $((port + 1)) $((port + 2)); do
  kivi serve -m "$model" --port "$worker_port" --threads 1 --served-model-name model &
  workers+=("http://127.0.0.1:$worker_port")
done
vllm-router --host 127.0.0.1 --port "$port" --policy "$policy" --worker-urls "${workers[@]}" &
wait -n  # until one of them ends, or a signal

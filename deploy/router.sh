#!/bin/bash
# Two servers on this machine behind vLLM's router (pip install vllm-router).
#   deploy/router.sh MODEL [round_robin|cache_aware]
set -euo pipefail
model=${1:?"usage: deploy/router.sh MODEL [POLICY]"}
policy=${2:-round_robin}
trap 'kill $(jobs -p) 2>/dev/null' EXIT
for port in 8001 8002; do
  kivi serve -m "$model" --port "$port" --threads 1 --served-model-name model &
done
vllm-router --host 127.0.0.1 --port 8000 --policy "$policy" \
            --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002

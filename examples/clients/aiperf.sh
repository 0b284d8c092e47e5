#!/bin/sh
# aiperf: pip install aiperf
tokenizer=$HOME/.cache/radixserve/models/SmolLM2-135M-Instruct-v2
aiperf profile --model SmolLM2-135M-Instruct --url http://127.0.0.1:8000 \
    --endpoint-type chat --streaming --tokenizer "$tokenizer" --use-server-token-count \
    --isl 64 --osl 8 --request-count 4 --concurrency 2 --extra-inputs ignore_eos:true --ui simple \
    --profile-export-prefix aiperf

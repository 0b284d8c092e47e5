#!/bin/sh
# vllm bench serve: pip install 'vllm[bench]'
tokenizer=$HOME/.cache/radixserve/models/SmolLM2-135M-Instruct-v2
vllm bench serve --backend openai-chat --endpoint /v1/chat/completions \
    --base-url http://127.0.0.1:8000 --model SmolLM2-135M-Instruct --tokenizer "$tokenizer" \
    --dataset-name random --random-input-len 64 --random-output-len 8 --ignore-eos \
    --num-prompts 4 --max-concurrency 2 --save-result --result-filename vllm.json

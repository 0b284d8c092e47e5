#!/bin/sh
# aider: pip install aider-chat
export OPENAI_API_BASE=http://127.0.0.1:8000/v1
export OPENAI_API_KEY=none
aider --model openai/SmolLM2-135M-Instruct --no-show-model-warnings --no-check-update \
    --analytics-disable --no-git --no-pretty --yes-always --map-tokens 0 --chat-mode ask \
    --message "What is the capital of France?"

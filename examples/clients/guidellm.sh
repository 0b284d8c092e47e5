#!/bin/sh
# guidellm: pip install guidellm
tokenizer=$HOME/.cache/radixserve/models/SmolLM2-135M-Instruct-v2
guidellm run --backend kind=openai_http,target=http://127.0.0.1:8000,model=SmolLM2-135M-Instruct \
    --profile kind=concurrent,streams=2 --constraint kind=max_requests,count=4 \
    --data kind=synthetic_text,prompt_tokens=64,output_tokens=8 \
    --tokenizer kind=huggingface_auto,model="$tokenizer" --output kind=json,path=guidellm.json

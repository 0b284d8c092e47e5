#!/bin/sh
# lm-evaluation-harness: pip install 'lm-eval[api]'. A task of one's own, of two documents.
set -e

cat > capitals.jsonl <<'JSONL'
{"question": "The capital of France is", "answer": " Paris"}
{"question": "The capital of Italy is", "answer": " Rome"}
JSONL
cat > capitals.yaml <<'YAML'
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
YAML

tokenizer=$HOME/.cache/radixserve/models/SmolLM2-135M-Instruct-v2
lm_eval --model local-completions --tasks capitals --include_path . --output_path results \
    --batch_size 16 --model_args \
    "model=SmolLM2-135M-Instruct,base_url=http://127.0.0.1:8000/v1/completions,tokenizer=$tokenizer"

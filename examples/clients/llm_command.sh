#!/bin/sh
# The command llm: pip install llm
set -e

llm openai endpoint http://127.0.0.1:8000/v1 -m SmolLM2-135M-Instruct \
    "What is the capital of France?"

# With a name of its own, so that answers are logged and conversations can go on:
cat > "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<'YAML'
- model_id: radixserve
  model_name: SmolLM2-135M-Instruct
  api_base: http://127.0.0.1:8000/v1
  supports_schema: true
  supports_tools: true
YAML
llm -m radixserve "What is the capital of France?"

llm -m radixserve "Alice and Bob are going to a science fair on Friday." --schema '{
  "type": "object",
  "properties": {"name": {"type": "string"}, "day": {"type": "string"}},
  "required": ["name", "day"],
  "additionalProperties": false
}'

// The AI SDK: `npm install ai @ai-sdk/openai-compatible`.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const radixserve = createOpenAICompatible({
  name: "radixserve",
  baseURL: "http://127.0.0.1:8000/v1",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = radixserve("SmolLM2-135M-Instruct");
const prompt = "What is the capital of France?";

const { text } = await generateText({ model, prompt });
console.log("chat:", text);

const parts = [];
const streamed = streamText({ model, prompt });
for await (const part of streamed.textStream) parts.push(part);
console.log("stream:", parts.join("|"));
console.log("cached:", (await streamed.usage).inputTokenDetails.cacheReadTokens);

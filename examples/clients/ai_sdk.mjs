// The AI SDK: `npm install ai zod @ai-sdk/openai-compatible`. The last lines show two other
// providers: `npm install @ai-sdk/openai @ai-sdk/anthropic`.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

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

const get_weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    console.log("call: get_weather", city);
    return `It is sunny in ${city}.`;
  },
});
const told = await generateText({
  model,
  prompt: "What is the weather like in Paris?",
  tools: { get_weather },
  prepareStep: ({ stepNumber }) => ({
    toolChoice: stepNumber === 0 ? { type: "tool", toolName: "get_weather" } : "none",
  }),
  maxOutputTokens: 40,
  stopWhen: stepCountIs(2),
});
console.log("told:", told.text);

const { output } = await generateText({
  model,
  prompt: "Alice and Bob are going to a science fair on Friday.",
  output: Output.object({
    schema: z.object({ name: z.string(), day: z.string(), participants: z.array(z.string()) }),
  }),
});
console.log("parsed:", JSON.stringify(output));

const openai = createOpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });
const overResponses = openai("SmolLM2-135M-Instruct");
console.log("responses:", (await generateText({ model: overResponses, prompt })).text);

const anthropic = createAnthropic({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });
const overMessages = anthropic("SmolLM2-135M-Instruct");
const maxOutputTokens = 200;
console.log("messages:", (await generateText({ model: overMessages, prompt, maxOutputTokens })).text);

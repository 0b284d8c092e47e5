// The Anthropic client for Node: `npm install @anthropic-ai/sdk`.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: "http://127.0.0.1:8000", apiKey: "none" });
const model = "SmolLM2-135M-Instruct";
const max_tokens = 200;

const messages = [{ role: "user", content: "What is the capital of France?" }];
const message = await client.messages.create({ model, max_tokens, messages });
console.log("chat:", message.content[0].text);

const parts = [];
const stream = client.messages.stream({ model, max_tokens, messages });
stream.on("text", (text) => parts.push(text));
await stream.finalMessage();
console.log("stream:", parts.join("|"));

const asked = await client.messages.create({
  model,
  max_tokens,
  messages: [{ role: "user", content: "What is the weather like in Paris?" }],
  tool_choice: { type: "tool", name: "get_weather" },
  tools: [
    {
      name: "get_weather",
      description: "The weather in a city",
      input_schema: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  ],
});
const use = asked.content.find((block) => block.type === "tool_use");
console.log("call:", use.name, JSON.stringify(use.input));

// The OpenAI client for Node: `npm install openai zod`.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });
const model = "SmolLM2-135M-Instruct";

const messages = [{ role: "user", content: "What is the capital of France?" }];
const completion = await client.chat.completions.create({ model, messages });
console.log("chat:", completion.choices[0].message.content);

const parts = [];
const stream = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of stream) parts.push(chunk.choices[0]?.delta?.content ?? "");
console.log("stream:", parts.join("|"));

const response = await client.responses.create({ model, input: messages });
console.log("responses:", response.output_text);

// A loop with tools, which the client runs by itself.
const runner = client.chat.completions.runTools({
  model,
  messages: [{ role: "user", content: "What is the weather like in Paris?" }],
  tool_choice: { type: "function", function: { name: "get_weather" } },
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city",
        parse: JSON.parse,
        parameters: {
          type: "object",
          properties: { city: { type: "string" } },
          required: ["city"],
        },
        function: ({ city }) => {
          console.log("call: get_weather", city);
          return `It is sunny in ${city}.`;
        },
      },
    },
  ],
});
await runner.done();

const Event = z.object({ name: z.string(), day: z.string(), participants: z.array(z.string()) });
const parsed = await client.chat.completions.parse({
  model,
  messages: [{ role: "user", content: "Alice and Bob are going to a science fair on Friday." }],
  response_format: zodResponseFormat(Event, "event"),
});
console.log("parsed:", JSON.stringify(parsed.choices[0].message.parsed));

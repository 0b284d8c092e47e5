// The OpenAI client for Node: `npm install openai`.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });
const model = "SmolLM2-135M-Instruct";

const messages = [{ role: "user", content: "What is the capital of France?" }];
const completion = await client.chat.completions.create({ model, messages });
console.log("chat:", completion.choices[0].message.content);

const parts = [];
const stream = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of stream) parts.push(chunk.choices[0]?.delta?.content ?? "");
console.log("stream:", parts.join("|"));

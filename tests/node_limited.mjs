// One request through a client for Node that repeats by itself: takes a job as JSON in argv, prints what came of it as JSON.
// It is copied to where npm installed the clients.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const { client, base_url: baseURL, api_key: apiKey, retries: maxRetries } = JSON.parse(process.argv[2]);
const messages = [{ role: "user", content: "hi" }];
const asked = { model: "route", max_tokens: 10, messages };

const models = {
  chat: () => createOpenAI({ baseURL, apiKey }).chat("route"),
  responses: () => createOpenAI({ baseURL, apiKey })("route"),
  messages: () => createAnthropic({ baseURL, apiKey })("route"),
  compatible: () => createOpenAICompatible({ name: "gateway", baseURL, apiKey })("route"),
};

async function ask() {
  if (client === "openai") {
    const made = await new OpenAI({ baseURL, apiKey, maxRetries }).chat.completions.create(asked);
    return made.choices[0].message.content;
  }
  if (client === "anthropic") {
    const made = await new Anthropic({ baseURL: baseURL.slice(0, -3), apiKey, maxRetries }).messages.create(asked);
    return made.content[0].text;
  }
  const [, kind, streamed] = client.split(" ");
  const call = { model: models[kind](), prompt: "hi", maxOutputTokens: 20, maxRetries };
  if (!streamed) return (await generateText(call)).text;
  let [text, failure] = ["", null];
  for await (const part of streamText({ ...call, onError: ({ error }) => (failure = error) }).textStream) text += part;
  if (failure) throw failure;
  return text;
}

const result = { text: null, error: null, message: "", status: null, code: null, type: null, repeats: null };
try {
  result.text = await ask();
} catch (error) {
  const last = error.lastError ?? error;
  const body = JSON.parse(last.responseBody ?? "{}").error ?? {};
  result.error = error.name === "Error" ? error.constructor.name : error.name;
  result.message = last.message;
  result.status = last.statusCode ?? last.status ?? null;
  result.code = last.code ?? body.code ?? null;
  result.type = last.type ?? body.type ?? null;
  result.repeats = last.isRetryable ?? null;
}
console.log(JSON.stringify(result));

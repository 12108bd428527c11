// What OpenAI's official client for Node does with a stored response: takes a job as JSON in argv, prints what came of it.
// It is copied to where npm installed `openai`.
import OpenAI from "openai";

const job = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: job.base_url, apiKey: job.api_key, maxRetries: 0 });
const first = await client.responses.create({ model: "route", input: "hi" });
const next = await client.responses.create({ model: "route", input: "more", previous_response_id: first.id });
const got = await client.responses.retrieve(first.id);
const items = await client.responses.inputItems.list(first.id);
const cancelled = await client.responses.cancel(first.id);
await client.responses.delete(first.id);
const error = await client.responses.retrieve("resp_unknown").then(() => null, (error) => `${error.status} ${error.code}`);
console.log(JSON.stringify({ next: next.output_text, got: got.output_text, items: items.data.length, status: cancelled.status, error }));

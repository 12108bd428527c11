// One request through Anthropic's official client for Node: takes a job as JSON in argv, prints what came of it as JSON.
// It is copied to where npm installed `@anthropic-ai/sdk`.
import Anthropic from "@anthropic-ai/sdk";

const job = JSON.parse(process.argv[2]);
const client = new Anthropic({ baseURL: job.base_url, apiKey: job.api_key, maxRetries: 0 });
const asked = { model: "route", max_tokens: 9, messages: [{ role: "user", content: "hi" }] };
const started = performance.now();
const result = { text: "", error: null, code: null };
try {
  if (job.count) {
    const { model, messages } = asked;
    result.text = String((await client.messages.countTokens({ model, messages })).input_tokens);
  } else if (job.stream) {
    for await (const each of await client.messages.create({ ...asked, stream: true })) {
      if (each.type === "content_block_delta") result.text += each.delta.text;
    }
  } else {
    result.text = (await client.messages.create(asked)).content[0].text;
  }
} catch (error) {
  result.error = `${error.constructor.name}: ${error.message}`;
  result.code = error.type ?? null;
}
result.seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify(result));

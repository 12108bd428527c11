// One request through the official client for Node: takes a job as JSON in argv, prints what came of it as JSON.
// It is copied to where npm installed `openai`.
import OpenAI from "openai";

const job = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: job.base_url, apiKey: job.api_key, maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const asked = { model: "route", stream: job.stream, ...(job.responses ? { input: "hi" } : { messages }) };
const started = performance.now();
const result = { text: "", error: null, code: null };
try {
  const answer = await (job.responses ? client.responses : client.chat.completions).create(asked);
  if (job.stream) {
    for await (const each of answer) {
      if (each.type === "response.failed") result.error = each.response.error.message; // the provider's own
      result.text += (job.responses ? each.type.endsWith("text.delta") && each.delta : each.choices?.[0]?.delta?.content) || "";
    }
  } else {
    result.text = job.responses ? answer.output_text : answer.choices[0].message.content;
  }
} catch (error) {
  result.error = `${error.constructor.name}: ${error.message} ${JSON.stringify(error.error ?? null)}`;
  result.code = error.code ?? null;
}
result.seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify(result));

// One request through the official client for Node: takes a job as JSON in argv, prints what came of it as JSON.
// It is copied to where npm installed `openai`.
import OpenAI from "openai";

const job = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: job.base_url, apiKey: job.api_key, maxRetries: 0 });
const asked = { model: "route", messages: [{ role: "user", content: "hi" }], stream: job.stream };
const started = performance.now();
const result = { text: "", error: null, code: null };
try {
  const answer = await client.chat.completions.create(asked);
  if (job.stream) {
    for await (const chunk of answer) result.text += chunk.choices[0]?.delta?.content ?? "";
  } else {
    result.text = answer.choices[0].message.content;
  }
} catch (error) {
  result.error = `${error.constructor.name}: ${error.message} ${JSON.stringify(error.error ?? null)}`;
  result.code = error.code ?? null;
}
result.seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify(result));

// One request to one endpoint through the official client for Node: takes a job as JSON in argv, prints what came of it as JSON.
// It is copied to where npm installed `openai`.
import OpenAI, { toFile } from "openai";

const job = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: job.base_url, apiKey: job.api_key, maxRetries: 0 });
const model = "route";
const file = () => toFile(Buffer.from("RIFF"), "a.wav");
const image = () => toFile(Buffer.from("PNG"), "a.png", { type: "image/png" });
const all = async (stream) => {
  const types = [];
  for await (const each of stream) types.push(each.type);
  return types;
};
const bytes = async (response) => Buffer.from(await response.arrayBuffer()).toString("latin1");
const uses = {
  moderations: async () => (await client.moderations.create({ model, input: "x" })).results[0].flagged,
  "moderations without a model": async () => (await client.moderations.create({ input: "x" })).results[0].flagged,
  rerank: async () => (await client.post("/rerank", { body: { model, query: "q", documents: ["a"] } })).results[0].index,
  images: async () => (await client.images.generate({ model, prompt: "x" })).data[0].b64_json,
  "images streamed": async () => all(await client.images.generate({ model, prompt: "x", stream: true, partial_images: 1 })),
  edits: async () => (await client.images.edit({ model, prompt: "x", image: await image() })).data[0].b64_json,
  "edits streamed": async () => all(await client.images.edit({ model, prompt: "x", image: await image(), stream: true })),
  variations: async () => (await client.images.createVariation({ model, image: await image() })).data[0].b64_json,
  transcriptions: async () => (await client.audio.transcriptions.create({ model, file: await file() })).text,
  "transcriptions in text": async () => client.audio.transcriptions.create({ model, file: await file(), response_format: "text" }),
  "transcriptions streamed": async () => all(await client.audio.transcriptions.create({ model, file: await file(), stream: true })),
  translations: async () => (await client.audio.translations.create({ model, file: await file() })).text,
  speech: async () => bytes(await client.audio.speech.create({ model, input: "x", voice: "alloy" })),
  "speech as events": async () => bytes(await client.audio.speech.create({ model, input: "x", voice: "alloy", stream_format: "sse" })),
};
const result = { value: null, error: null };
try {
  result.value = await uses[job.use]();
} catch (error) {
  result.error = `${error.constructor.name}: ${error.message} ${JSON.stringify(error.error ?? null)} ${error.cause?.message}`;
}
console.log(JSON.stringify(result));

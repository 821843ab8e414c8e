// The official Node SDK: files as streams, pages by `for await`, errors by their classes.

import assert from "node:assert/strict";
import { createReadStream, readFileSync, statSync, writeFileSync } from "node:fs";
import OpenAI, { AuthenticationError, BadRequestError, ConflictError, NotFoundError } from "openai";

const ENDED = ["completed", "failed", "expired", "cancelled"];
const CHAT = "/v1/chat/completions";
// By environment variables, as any program of its users.
const client = new OpenAI();

const passed = (step) => console.log("passed", step);
const chat = (text) => ({ model: "gpt-4o-mini", messages: [{ role: "user", content: text }] });

function writeInput(path, bodies) {
  const lines = bodies.map((body, number) =>
    JSON.stringify({ custom_id: `request-${number}`, method: "POST", url: CHAT, body }),
  );
  writeFileSync(path, lines.join("\n"));
  return path;
}

async function create(path, options = {}) {
  const file = await client.files.create({ file: createReadStream(path), purpose: "batch" });
  assert.equal(file.bytes, statSync(path).size);
  assert.equal(file.filename, path);
  return client.batches.create({
    input_file_id: file.id,
    endpoint: CHAT,
    completion_window: "24h",
    ...options,
  });
}

async function end(batch) {
  const deadline = Date.now() + 120_000;
  while (!ENDED.includes(batch.status)) {
    assert(Date.now() < deadline, JSON.stringify(batch));
    await new Promise((resume) => setTimeout(resume, 300));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

async function linesOf(fileId) {
  if (fileId === null) return new Map();
  const text = await (await client.files.content(fileId)).text();
  const lines = text.trimEnd().split("\n").map((line) => JSON.parse(line));
  const byId = new Map(lines.map((line) => [line.custom_id, line]));
  assert.equal(byId.size, lines.length, "a custom_id came twice");
  return byId;
}

async function runChat() {
  const bodies = Array.from({ length: 200 }, (_, number) => chat(`question ${number}`));
  const path = writeInput("chat.jsonl", [...bodies, chat("refuse this line")]);
  const batch = await end(await create(path, { metadata: { purpose: "clients" } }));
  assert.equal(batch.status, "completed");
  assert.deepEqual(batch.request_counts, { total: 201, completed: 200, failed: 1 });
  assert.deepEqual(batch.metadata, { purpose: "clients" });
  passed("upload, create, poll");
  const outputs = await linesOf(batch.output_file_id);
  assert.deepEqual(new Set(outputs.keys()), new Set(bodies.map((_, n) => `request-${n}`)));
  let tokens = 0;
  for (const { response } of outputs.values()) {
    assert(response.body.choices[0].message.content);
    tokens += response.body.usage.total_tokens;
  }
  assert.equal(batch.usage.total_tokens, tokens);
  passed("output file");
  const errors = await linesOf(batch.error_file_id);
  assert.deepEqual([...errors.keys()], ["request-200"]);
  assert.equal(errors.get("request-200").response.status_code, 400);
  passed("error file");
  return batch;
}

async function cancel() {
  const bodies = Array.from({ length: 1_000 }, (_, number) => chat(`question ${number}`));
  let batch = await create(writeInput("long.jsonl", bodies));
  assert(["cancelling", "cancelled"].includes((await client.batches.cancel(batch.id)).status));
  batch = await end(batch);
  assert.equal(batch.status, "cancelled");
  const outputs = await linesOf(batch.output_file_id);
  const errors = await linesOf(batch.error_file_id);
  if (batch.request_counts.total) assert.equal(outputs.size + errors.size, 1_000);
  for (const line of errors.values()) assert.equal(line.error.code, "batch_cancelled");
  passed("cancel");
}

async function fail() {
  writeFileSync("bad.jsonl", `${readFileSync("chat.jsonl", "utf8")}\n{"custom_id": 1}\n`);
  const batch = await end(await create("bad.jsonl"));
  assert.equal(batch.status, "failed");
  assert.deepEqual(new Set(batch.errors.data.map((error) => error.line)), new Set([202]));
  passed("failed validation");
}

async function refuse(completed) {
  await assert.rejects(client.batches.retrieve("batch_none"), NotFoundError);
  await assert.rejects(client.files.content("file-none"), NotFoundError);
  await assert.rejects(client.batches.list({ limit: 101 }), BadRequestError);
  await assert.rejects(client.batches.cancel(completed.id), ConflictError);
  await assert.rejects(new OpenAI({ apiKey: "sk-wrong" }).batches.list(), AuthenticationError);
  passed("refusals");
}

async function page() {
  const batches = [];
  for await (const batch of client.batches.list({ limit: 1 })) batches.push(batch);
  assert(batches.length >= 3);
  assert.equal(new Set(batches.map((batch) => batch.id)).size, batches.length);
  const files = [];
  for await (const file of client.files.list({ limit: 2, order: "asc" })) files.push(file.id);
  assert.equal(new Set(files).size, files.length);
  passed("auto-paging");
}

async function remove(batch) {
  assert((await client.files.delete(batch.output_file_id)).deleted);
  await assert.rejects(client.files.retrieve(batch.output_file_id), NotFoundError);
  passed("delete files");
}

async function uploadInParts() {
  const content = readFileSync(writeInput("parts.jsonl", Array(50).fill(chat("hello"))));
  const upload = await client.uploads.create({
    filename: "parts.jsonl",
    purpose: "batch",
    bytes: content.length,
    mime_type: "application/jsonl",
  });
  const half = content.length >> 1;
  const parts = await Promise.all(
    [content.subarray(0, half), content.subarray(half)].map((data) =>
      client.uploads.parts.create(upload.id, { data: new File([data], "part") }),
    ),
  );
  const completed = await client.uploads.complete(upload.id, {
    part_ids: parts.map((part) => part.id),
  });
  const batch = await end(
    await client.batches.create({
      input_file_id: completed.file.id,
      endpoint: CHAT,
      completion_window: "24h",
    }),
  );
  assert.equal((await linesOf(batch.output_file_id)).size, 50);
  passed("upload in parts");
}

const { version } = JSON.parse(
  readFileSync(new URL("node_modules/openai/package.json", import.meta.url)),
);
console.log("client openai", version);
const finished = await runChat();
await cancel();
await fail();
await refuse(finished);
await page();
await remove(finished);
await uploadInParts();

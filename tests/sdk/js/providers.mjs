// Messages to language models and e-mail services: ordinary messages, whose URL and headers the SDK makes.

import assert from "node:assert/strict";
import test from "node:test";
import { anthropic, custom, openai, resend, upstash } from "@upstash/qstash";

import { client, delivery, plain, receiverUrl, rejectsWith, unique } from "./support.mjs";

const callback = `${receiverUrl}/callback`;
const body = { model: "m", messages: [{ role: "user", content: "hi" }] };

test("a model of one's own gets its message", async () => {
  const provider = custom({ baseUrl: receiverUrl, token: "provider-token" });
  const request = { api: { name: "llm", provider }, body, callback };
  const queue = client.queue({ queueName: unique("queue") });
  const [item] = await client.batchJSON([{ ...request }]);
  for (const { messageId } of [await client.publishJSON(request), await queue.enqueueJSON(request), item]) {
    const { url, headers, body: text } = await delivery(messageId);
    assert.equal(url, `${receiverUrl}/v1/chat/completions`);
    assert.equal(headers.authorization, "Bearer provider-token");
    assert.equal(headers["content-type"], "application/json");
    assert.deepEqual(JSON.parse(text), body);
  }
});

test("known services have their URLs and headers", async () => {
  for (const [api, url, header] of [
    [
      { name: "llm", provider: openai({ token: "t", organization: "o" }) },
      "https://api.openai.com/v1/chat/completions",
      { Authorization: ["Bearer t"], "Openai-Organization": ["o"] },
    ],
    [
      { name: "llm", provider: anthropic({ token: "t" }) },
      "https://api.anthropic.com/v1/messages",
      { "X-Api-Key": ["t"], "Anthropic-Version": ["2023-06-01"] },
    ],
    [
      { name: "email", provider: resend({ token: "t", batch: true }) },
      "https://api.resend.com/emails/batch",
      { Authorization: ["Bearer t"] },
    ],
  ]) {
    // It waits until it is cancelled, and is never sent.
    const { messageId } = await client.publishJSON({ api, body, callback, delay: "1d" });
    const message = plain(await client.messages.get(messageId));
    assert.deepEqual(await client.messages.cancel(messageId), { cancelled: 1 });
    assert.equal(message.url, url);
    assert.equal(message.method, "POST");
    assert.deepEqual(message.header, { "Content-Type": ["application/json"], ...header });
  }
});

test("there is no model of the server's own", async () => {
  await rejectsWith(400, client.publishJSON({ api: { name: "llm", provider: upstash() }, body, callback }), "api/llm");
  const chat = { provider: upstash(), ...body };
  await rejectsWith(404, client.chat().create({ ...chat }));
  await rejectsWith(404, client.chat().prompt({ ...chat, system: "s", user: "u" }));
  const chunks = await client.chat().create({ ...chat, stream: true });
  await rejectsWith(404, chunks.next());
  // A model elsewhere is asked by the SDK itself.
  const provider = custom({ baseUrl: receiverUrl, token: "t" });
  assert.deepEqual(await client.chat().create({ ...body, provider }), { choices: [] });
});

test("workflows are another product", async () => {
  await rejectsWith(404, client.workflow.cancel("wfr_unknown"));
});

// Development mode: with QSTASH_DEV the SDK finds the server by its well-known keys, without URL, token or keys.

import assert from "node:assert/strict";
import test from "node:test";
import { Client, Receiver, startDevServer } from "@upstash/qstash";

const { RECEIVER_URL: receiverUrl, RECEIVED_URL: receivedUrl, QSTASH_DEV_PORT: port } = process.env;

test("the SDK uses the server instead of starting its own", async () => {
  const said = [];
  console.log = console.warn = (text) => said.push(text);
  await startDevServer();
  assert.match(said.join("\n"), new RegExp(`Server already running at http://127.0.0.1:${port}`));
  const client = new Client();
  const { messageId } = await client.publishJSON({ url: `${receiverUrl}/ok`, body: { hello: "world" } });
  const { url } = await client.messages.get(messageId);
  assert.equal(url, `${receiverUrl}/ok`);
  for (;;) {
    const [request] = await (await fetch(receivedUrl)).json();
    if (!request) continue;
    const body = Buffer.from(request.body, "base64").toString();
    const signature = request.headers["upstash-signature"];
    assert.equal(await new Receiver().verify({ signature, body, url }), true);
    break;
  }
});

test("all checks were made", () => {});

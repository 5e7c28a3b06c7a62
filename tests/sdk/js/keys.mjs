// The signing keys, which the SDK reads only in development mode. Last, since it rotates them.

import assert from "node:assert/strict";
import test from "node:test";
import { Receiver } from "@upstash/qstash";

import { client, currentSigningKey, delivery, nextSigningKey, receiver, receiverUrl, server, token } from "./support.mjs";

const call = async (method, path) =>
  (await fetch(server + path, { method, headers: { Authorization: `Bearer ${token}` } })).json();

test("receivers that know both keys verify across a rotation", async () => {
  assert.deepEqual(await call("GET", "/v2/keys"), { current: currentSigningKey, next: nextSigningKey });
  const rotated = await call("POST", "/v2/keys/rotate");
  assert.equal(rotated.current, nextSigningKey);
  assert.match(rotated.next, /^sig_/);
  assert.deepEqual(await call("GET", "/v2/keys"), rotated);
  const { messageId } = await client.publish({ url: `${receiverUrl}/ok`, body: "after the rotation" });
  const { headers, body, url } = await delivery(messageId);
  const signature = headers["upstash-signature"];
  assert.equal(await receiver.verify({ signature, body, url }), true);
  const updated = new Receiver({ currentSigningKey: rotated.current, nextSigningKey: rotated.next });
  assert.equal(await updated.verify({ signature, body, url }), true);
  await assert.rejects(receiver.verify({ signature, body: "tampered", url }), { name: "SignatureError" });
});

// Signatures.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";
import { Receiver } from "@upstash/qstash";

import {
  client, currentSigningKey, delivery, ended, nextSigningKey, received, receiver, receiverUrl, server, token,
} from "./support.mjs";

const verify = (by, request, changes = {}) =>
  by.verify({ signature: request.headers["upstash-signature"], body: request.body, url: request.url, ...changes });

const fails = (promise) => assert.rejects(promise, { name: "SignatureError" });

test("deliveries of every method verify, and nothing else does", async () => {
  for (const [method, body] of [["POST", "ünïcode ✓"], ["GET", "a body"], ["DELETE", "a body"], ["PUT", ""]]) {
    const { messageId } = await client.publish({ url: `${receiverUrl}/ok?of=${method}`, method, body });
    const request = await delivery(messageId);
    assert.equal(request.method, method);
    assert.equal(request.body, body);
    assert.equal(await verify(receiver, request), true);
    assert.equal(await verify(receiver, request, { url: undefined, clockTolerance: 5 }), true);
    await fails(verify(receiver, request, { body: `${body} ` }));
    await fails(verify(receiver, request, { url: `${request.url}/` }));
    const others = new Receiver({ currentSigningKey: nextSigningKey, nextSigningKey: "sig_other" });
    await fails(verify(others, request));
    const rotated = new Receiver({ currentSigningKey: "sig_other", nextSigningKey: currentSigningKey });
    assert.equal(await verify(rotated, request), true);
  }
});

test("every attempt is signed anew", async () => {
  const { messageId } = await client.publish({ url: `${receiverUrl}/recovers`, body: "x", retryDelay: "1100" });
  await ended(messageId, "CREATED ACTIVE ERROR RETRY ACTIVE DELIVERED");
  const attempts = (await received()).filter((request) => request.messageId === messageId);
  assert.deepEqual(attempts.map(({ headers }) => headers["upstash-retried"]), ["0", "1"]);
  for (const attempt of attempts) assert.equal(await verify(receiver, attempt), true);
  const [first, second] = attempts.map(({ headers }) => claims(headers["upstash-signature"]));
  assert.notEqual(first.jti, second.jti);
  assert(second.exp > first.exp);
});

const claims = (signature) => JSON.parse(Buffer.from(signature.split(".")[1], "base64url"));

test("the token has exactly the claims that receivers know", async () => {
  // Raw: no client makes this URL any nicer, and what is signed is this.
  const url = `${receiverUrl}/A//b/../c?x=%41&u=https://z.com/?a=1`;
  const headers = { Authorization: `Bearer ${token}` };
  const published = await fetch(`${server}/v2/publish/${url}`, { method: "POST", headers, body: "x" });
  const { messageId } = await published.json();
  const { url: stored } = await client.messages.get(messageId);
  const { headers: { "upstash-signature": signature } } = await delivery(messageId);
  const [head, payload] = signature.split(".");
  assert.doesNotMatch(signature, /[=+/]/);
  assert.deepEqual(JSON.parse(Buffer.from(head, "base64url")), { alg: "HS256", typ: "JWT" });
  const now = Math.floor(Date.now() / 1000);
  const token_ = JSON.parse(Buffer.from(payload, "base64url"));
  const { iat, exp, jti, ...rest } = token_;
  const hash = createHash("sha256").update("x").digest("base64").replaceAll("+", "-").replaceAll("/", "_");
  assert.deepEqual(rest, { aud: "", body: hash, iss: "Upstash", nbf: 0, sub: stored });
  assert(Number.isInteger(iat) && iat <= now && iat > now - 60, `iat ${iat}, now ${now}`);
  assert(exp - iat >= 300 && exp <= now + 300, `exp ${exp}, iat ${iat}, now ${now}`);
  assert.match(jti, /^jwt_.+/);
});

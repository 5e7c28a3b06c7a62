// What the scenarios stand on: where everything is, the clients, the list of scenarios, and waiting.

import assert from "node:assert/strict";
import { createHash, createHmac, randomUUID } from "node:crypto";
import { Client as QStashClient, Receiver } from "@upstash/qstash";

import { Client, express, since, upTo, wantedParts } from "./sdk.mjs";

export const {
  QSTASH_URL: server,
  QSTASH_TOKEN: token,
  QSTASH_CURRENT_SIGNING_KEY: currentSigningKey,
  QSTASH_NEXT_SIGNING_KEY: nextSigningKey,
} = process.env;
// Without them the SDK would verify nothing.
assert(server && token && currentSigningKey && nextSigningKey, "QSTASH_URL, _TOKEN, _CURRENT_SIGNING_KEY and _NEXT_SIGNING_KEY");

// The SDK tells of every error of an app, and here many are made.
console.warn = console.error = () => {};

export const client = new Client({ baseUrl: server, token });
export const qstash = new QStashClient({ baseUrl: server, token });
export const receiver = new Receiver({ currentSigningKey, nextSigningKey });

/** Asks the server what the SDK has no call for. */
export const ask = (method, path, { headers, body } = {}) =>
  fetch(`${server}${path}`, { method, headers: { Authorization: `Bearer ${token}`, ...headers }, body });

// --- scenarios ---

/** All that this version of the SDK can play and that was asked for. */
export const scenarios = [];

/**
 * Adds a scenario. `part`: the part of Workflow that it is about; `from`: the first version of the SDK that can
 * do it; `to`: the last one; `web`: whether the web-standard handler is enough; `alone`: whether it touches other scenarios' runs, or keeps the app so busy that others
 * would wait for it.
 */
export function scenario(part, name, { from = "0.0.0", to = "999.0.0", web = false, alone = false }, play) {
  if (!since(from) || !upTo(to) || (web && express)) return;
  if (wantedParts.length > 0 && !wantedParts.some((wanted) => `${part}: ${name}`.includes(wanted))) return;
  scenarios.push({ name: `${part}: ${name}`, alone, play });
}

// --- waiting ---

// A machine that does much else is slow; none of this takes more than 5 s by itself.
const DEADLINE_S = 60;

/** Asks until there is an answer. */
export async function eventually(what, ask, seconds = DEADLINE_S) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert(Date.now() < deadline, `not within ${seconds} s: ${typeof what === "function" ? what() : what}`);
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
}

/** Something that is held until it is opened. */
export function gate() {
  let open;
  const opened = new Promise((resolve) => (open = resolve));
  return { opened, open };
}

// --- making ---

let sequence = 0;
const process_ = randomUUID().slice(0, 8);
/** A name that no other scenario uses, nor another process on the same server. */
export const unique = (what) => `${what}-${process_}-${++sequence}`;

const base64url = (bytes) => Buffer.from(bytes).toString("base64url");

/** The signature of a request that the server didn't make. */
export function sign(url, body) {
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: "Upstash", sub: url, exp: now + 300, nbf: now - 60, iat: now, jti: `jwt_${randomUUID()}`,
    body: createHash("sha256").update(body).digest("base64url"),
  };
  const text = `${base64url(JSON.stringify({ alg: "HS256", typ: "JWT" }))}.${base64url(JSON.stringify(claims))}`;
  return `${text}.${createHmac("sha256", currentSigningKey).update(text).digest("base64url")}`;
}

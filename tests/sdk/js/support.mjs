// What the checks stand on: where everything is, the SDK with a count of what was called, and waiting.

import assert from "node:assert/strict";
import { Client, FlowControlApi, Messages, Receiver, Schedules, UrlGroups } from "@upstash/qstash";

export const {
  QSTASH_URL: server,
  QSTASH_TOKEN: token,
  QSTASH_CURRENT_SIGNING_KEY: currentSigningKey,
  QSTASH_NEXT_SIGNING_KEY: nextSigningKey,
  RECEIVER_URL: receiverUrl,
  RECEIVED_URL: receivedUrl,
} = process.env;

// The SDK writes every failed request to the console, and here many should fail.
console.warn = console.error = () => {};

export const client = new Client({ baseUrl: server, token });
export const receiver = new Receiver({ currentSigningKey, nextSigningKey });

// --- which methods there are, and which were called ---

export const methods = new Set();
export const called = new Set();

/** Notes calls of an object's own methods and getters; they do what they did before. */
function watch(name, object) {
  for (const [key, property] of Object.entries(Object.getOwnPropertyDescriptors(object))) {
    const kind = property.get ? "get" : "value";
    const original = property[kind];
    if (key === "constructor" || typeof original !== "function") continue;
    methods.add(`${name}.${key}`);
    property[kind] = function (...parameters) {
      called.add(`${name}.${key}`);
      return original.apply(this, parameters);
    };
    Object.defineProperty(object, key, property);
  }
  return object;
}

const classes = {
  Client, FlowControlApi, Messages, Receiver, Schedules, UrlGroups,
  Dlq: client.dlq.constructor,
  Queue: client.queue().constructor,
  Workflow: client.workflow.constructor,
  HttpClient: client.http.constructor,
};
for (const [name, { prototype }] of Object.entries(classes)) watch(name, prototype);
// Its methods are made with each object.
const { chat } = Client.prototype;
Client.prototype.chat = function () {
  return watch("Chat", chat.call(this));
};
client.chat();
// Private, and only for the proxies of another company, which no test should call.
methods.delete("Chat.getAuthorizationToken");

// --- waiting ---

/** Asks until there is an answer, 20 s at most. */
export async function eventually(what, ask, seconds = 20) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert(Date.now() < deadline, `not within ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

/** What the receiver has got. */
export async function received() {
  const requests = await (await fetch(receivedUrl)).json();
  return requests.map((request) => {
    const bytes = Buffer.from(request.body, "base64");
    const messageId = request.headers["upstash-message-id"];
    return { ...request, url: receiverUrl + request.target, bytes, body: bytes.toString(), messageId };
  });
}

export const deliveries = async (messageId) => (await received()).filter((r) => r.messageId === messageId);

export const delivery = (messageId) =>
  eventually(`${messageId} is delivered`, async () => (await deliveries(messageId))[0]);

export const callbackOf = (messageId, path) =>
  eventually(`${messageId} has a callback on ${path}`, async () =>
    (await received()).find((r) => r.target === path && JSON.parse(r.body).sourceMessageId === messageId)
  );

/** The states of a message so far. */
export const states = async (messageId) => {
  const { logs } = await client.logs({ messageIds: [messageId] });
  return logs.map((log) => log.state).reverse().join(" ");
};

export const ended = (messageId, expected) =>
  eventually(`${messageId}: ${expected}`, async () => (await states(messageId)) === expected);

export const deadLetter = (messageId) =>
  eventually(`${messageId} is in the DLQ`, async () => {
    const { messages } = await client.dlq.listMessages({ filter: { messageId } });
    return messages[0];
  });

// --- making and comparing ---

let sequence = 0;
/** A name that no other check uses. */
export const unique = (what) => `js-${what}-${++sequence}`;

/** A message that waits for a day, or what else is said about it. */
export const waiting = (options = {}) =>
  client.publish({ url: `${receiverUrl}/waits`, body: "waits", delay: "1d", ...options });

/** A message that has failed for good; its entry. */
export async function failed(options = {}) {
  const { messageId } = await client.publish({ url: `${receiverUrl}/fails`, body: "fails", retries: 0, ...options });
  return deadLetter(messageId);
}

/** What went over the wire: without the fields that the SDK adds as undefined. */
export const plain = (value) => JSON.parse(JSON.stringify(value));

export const ids = (items) => items.map((item) => item.messageId);

export const sorted = (texts) => [...texts].sort();

export function isTime(value) {
  assert(Number.isInteger(value), `${value} is no integer`);
  assert(Math.abs(value - Date.now()) < 1000 * 60 * 60, `${value} is not about now, in milliseconds`);
}

/** The promise fails with this status and an error of the one form; its text contains `text`. */
export const rejectsWith = (status, promise, text = "") =>
  assert.rejects(promise, (error) => {
    assert.equal(error.status, status, String(error));
    const body = JSON.parse(error.message);
    assert.deepEqual(Object.keys(body), ["error"]);
    assert(body.error.includes(text), `${body.error} does not contain ${text}`);
    return true;
  });

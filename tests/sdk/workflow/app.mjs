// The app: one HTTP server for all scenarios, with a route for each workflow and each third party, and a note of every
// request that comes to it.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { isDeepStrictEqual } from "node:util";

import { configuredAtSteps, express, many, serve } from "./sdk.mjs";
import { client, eventually, unique } from "./support.mjs";
import { logOf } from "./log.mjs";

const routes = new Map();
export const runs = new Map();

// --- one request ---

/** What a request to a workflow's endpoint is. */
function kindOf({ headers }) {
  if (headers["upstash-workflow-unknown-sdk"]) return "unknown";
  if (headers["upstash-workflow-is-failure"]) return "failure";
  if (headers["upstash-workflow-callback"]) return "result";
  return headers["upstash-workflow-sdk-version"] ? "step" : "direct";
}

/** Notes a request, and its answer when it has been sent. */
function note(request, response) {
  const { headers, method, url } = request;
  const path = url.split("?")[0];
  const note = { headers, method, url, path, at: Date.now(), body: undefined, status: undefined, answer: undefined };
  note.kind = kindOf(note);
  const end = response.end;
  response.end = function (chunk, ...rest) {
    note.answer = typeof chunk === "function" || !chunk ? "" : Buffer.from(chunk).toString();
    return end.call(this, chunk, ...rest);
  };
  response.on("close", () => {
    note.status ??= 0;
  });
  response.on("finish", () => {
    note.status = response.statusCode;
    note.answerHeaders = response.getHeaders();
    note.doneAt = Date.now();
  });
  return note;
}

async function read(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

const server = createServer(async (request, response) => {
  const one = note(request, response);
  const route = routes.get(one.path) ?? routes.get(one.path.replace(/[^/]+$/, ""));
  if (!route) return response.writeHead(404).end("no such route");
  route.requests.push(one);
  const runId = one.headers["upstash-workflow-runid"];
  if (runId && route.workflow) runOf(runId).requests.push(one);
  route.now += 1;
  route.most = Math.max(route.most, route.now);
  response.on("close", () => (route.now -= 1));
  try {
    await route.answer(request, response, one);
  } catch (error) {
    if (!response.headersSent) response.writeHead(500);
    response.end(String(error?.stack ?? error));
  }
});
// Else an app that is busy resets idle connections just when they are used again, and a delivery without retries fails.
server.keepAliveTimeout = server.headersTimeout = server.requestTimeout = 3_600_000;
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
export const origin = `http://127.0.0.1:${server.address().port}`;

/** Ends the app, so that the process can end. */
export function close() {
  server.close();
  server.closeAllConnections();
}

/** A web-standard handler in `node:http`. */
const standard = (handle) => async (request, response, one) => {
  one.body = await read(request);
  const headers = new Headers();
  for (let i = 0; i < request.rawHeaders.length; i += 2) headers.append(request.rawHeaders[i], request.rawHeaders[i + 1]);
  const { method } = request;
  const body = method === "GET" || method === "HEAD" ? undefined : one.body;
  const answer = await handle(new Request(`${origin}${request.url}`, { method, headers, body }));
  response.statusCode = answer.status;
  answer.headers.forEach((value, name) => response.setHeader(name, value));
  response.end(Buffer.from(await answer.arrayBuffer()));
};

/** An Express router, behind Express' own parser of bodies. */
async function routed(router) {
  const { default: makeApp, json } = await import("express");
  const app = makeApp();
  app.use(json({ limit: "64mb", verify: (request, _response, body) => (request.one.body = body) }));
  app.use(router);
  app.use((error, _request, response, _next) => response.status(500).send(String(error?.stack ?? error)));
  return (request, response, one) => {
    request.one = one;
    one.body = Buffer.alloc(0);
    app(request, response);
  };
}

// --- routes ---

class Route {
  constructor(path, answer, workflow = false) {
    Object.assign(this, { path, answer, workflow, url: `${origin}${path}`, requests: [], now: 0, most: 0 });
    assert(!routes.has(path), `${path} is there already`);
    routes.set(path, this);
  }

  /** How many requests there were. */
  counted(expected) {
    assert.equal(this.requests.length, expected, listed(this.requests));
  }
}

/** The last of the requests, as errors show them. */
const listed = (requests) => requests.slice(-30).map(shown).join("\n");

const shown = (one) =>
  `${one.kind} of ${one.headers["upstash-message-id"]}, attempt ${one.headers["upstash-retried"]}: ${one.status} ${one.answer?.slice(0, 300)}`;

/**
 * A third party: `reply(one)`, or a list of replies, the last one for all that follow. A reply has `status`, `headers`,
 * `body`, all optional; `after` is awaited before it is sent.
 */
export function thirdParty(reply) {
  const replies = Array.isArray(reply) ? [...reply] : undefined;
  return new Route(`/${unique("third-party")}`, async (request, response, one) => {
    one.body = await read(request);
    const next = replies ? (replies.length > 1 ? replies.shift() : replies[0]) : await reply(one);
    await next.after;
    response.writeHead(next.status ?? 200, next.headers).end(next.body);
  });
}

/**
 * A workflow: `play(context, did)`. `did(name, value)` notes that a step's function was executed, and returns the value.
 * `config` (retries, retryDelay, flowControl, failureUrl) is said where this SDK wants it; without it, no retries.
 * `failureFunction(payload)` is optional; `options` are more options of `serve`.
 */
export async function workflow(play, { config = {}, failureFunction, options = {} } = {}) {
  // Of none of these paths is another the beginning.
  const flow = new Route(`/${unique("flow")}/run`, undefined, true);
  flow.settings = settingsOf(config);
  flow.failureFunction = failureFunction;
  const all = serveOptions(flow.settings, failureFunction, options);
  flow.answer = await handlerOf(express ? many.serve(wrapped(play), all) : serve(wrapped(play), all).handler);
  return Object.assign(flow, triggers);
}

/**
 * Workflows that may call and invoke each other: `{ name: play or [play, more] }`, where `more` is as for `workflow`.
 * They are returned under their names, each with its `invokable` for `context.invoke` and `context.call`. Their requests
 * are counted together, in `.all`.
 */
export async function workflows(plays, shared = {}) {
  const prefix = `/${unique("flows")}/`;
  const all = new Route(prefix, undefined, true);
  const flows = { all };
  const invokables = {};
  for (const [name, given] of Object.entries(plays)) {
    const [play, { config = {}, failureFunction, options = {} } = {}] = Array.isArray(given) ? given : [given];
    const settings = settingsOf(config);
    const invokable = many.createWorkflow(wrapped(play), serveOptions(settings, failureFunction, options));
    invokables[name] = invokable;
    const url = `${origin}${prefix}${name}`;
    flows[name] = Object.assign({ url, settings, failureFunction, invokable }, triggers);
  }
  const served = many.serveMany(invokables, shared);
  all.answer = await handlerOf(express ? served : served.POST);
  return flows;
}

const handlerOf = (served) => (express ? routed(served) : standard(served));

const settingsOf = (config) => ({ retries: 0, ...config });

/** What `serve` gets: where each step carries the configuration, that too. */
const serveOptions = (settings, failureFunction, options) => ({
  ...(configuredAtSteps && settings),
  ...(failureFunction && { failureFunction: failing(failureFunction) }),
  ...options,
});

const triggers = {
  /** Starts a run by the SDK's client. */
  async trigger(options = {}) {
    return (await this.triggerAll([options]))[0];
  },

  /** Starts several runs in one call. */
  async triggerAll(list) {
    const given = { url: this.url, ...this.settings, ...this.atTrigger };
    if (configuredAtSteps) given.useFailureFunction = Boolean(this.failureFunction);
    const started = await client.trigger(list.map((options) => ({ ...given, ...options })));
    return started.map(({ workflowRunId }) => runOf(workflowRunId));
  },
};

/** Notes what a workflow's function does, but not when it is only tried up to its first step. */
const wrapped = (play) => async (context) => {
  if (context.disabled) return play(context, () => assert.fail("a step is executed while authorization is checked"));
  const run = runOf(context.workflowRunId);
  const result = await play(context, (name, value) => {
    run.did[name] = (run.did[name] ?? 0) + 1;
    return value;
  });
  run.returned.push(result);
  return result;
};

const failing = (failureFunction) => async (payload) => {
  runOf(payload.context.workflowRunId).failures.push(payload);
  return await failureFunction(payload);
};

/**
 * Waits, at the end of a workflow's function, until so many requests of its run have come and all others are answered. A
 * group's delivery that is on its way when the run ends may come or not, and without this their count would be anyone's
 * guess.
 */
export async function arrived(context, count) {
  const run = runOf(context.workflowRunId);
  const settled = () => run.requests.length >= count && run.requests.filter((one) => one.status === undefined).length <= 1;
  await run.waitFor(settled);
}

// --- runs ---

export const runOf = (id) => runs.get(id) ?? runs.set(id, new Run(id)).get(id);

/** A run as the app sees it. A run id that is used again is the same `Run` here. */
class Run {
  constructor(id) {
    // `did`: how often each step's function was executed. `returned`: what the whole function returned.
    Object.assign(this, { id, requests: [], did: {}, returned: [], failures: [], expected: undefined });
  }

  /** The requests of one kind. */
  of(kind) {
    return this.requests.filter((one) => one.kind === kind);
  }

  /** Its result, when it has ended; it ends once. */
  async result() {
    const what = () => `run ${this.id} ends; its requests:\n${listed(this.requests)}`;
    await eventually(what, () => {
      const broken = this.requests.find((one) => one.answer?.includes("AssertionError"));
      assert(!broken, `an assertion of the app: ${broken?.answer}`);
      return this.returned.length > 0 && this.quiet();
    });
    assert.equal(this.returned.length, 1, `run ${this.id} ended ${this.returned.length} times`);
    return this.returned[0];
  }

  /** Its result, where the answer to its end may have been lost, so that it may end again. */
  async resultInTheEnd() {
    await this.waitFor(() => this.returned.length > 0 && this.quiet());
    assert(this.returned.every((result) => isDeepStrictEqual(result, this.returned[0])), "two results that differ");
    return this.returned[0];
  }

  /** Whether every request has been answered. */
  quiet() {
    return this.requests.every((one) => one.status !== undefined);
  }

  /** What its failure function was given, when it was called; it is called once. */
  async failure() {
    const what = () => `run ${this.id} fails; its requests:\n${listed(this.requests)}`;
    await eventually(what, () => this.failures.length > 0 && this.quiet());
    assert.equal(this.failures.length, 1, `run ${this.id} failed ${this.failures.length} times`);
    assert.deepEqual(this.returned, [], `run ${this.id} failed, and ended too`);
    return this.failures[0];
  }

  /** Waits until something is so. */
  async waitFor(condition) {
    await eventually(() => `run ${this.id}: ${condition}; its requests:\n${listed(this.requests)}`, condition);
  }

  /** Waits for so many requests. Whether more come shows in the end (`checkAll`). */
  async requested(expected) {
    const what = () => `${expected} requests of run ${this.id}; there are:\n${listed(this.requests)}`;
    await eventually(what, () => this.requests.length >= expected && this.quiet());
  }

  /** How many requests it took: in all, or `{ kind: count }`. From now on there may be no more. */
  counted(expected) {
    const all = listed(this.requests);
    if (typeof expected === "number") {
      assert.equal(this.requests.length, expected, all);
    } else {
      const counts = {};
      for (const { kind } of this.requests) counts[kind] = (counts[kind] ?? 0) + 1;
      assert.deepEqual(counts, expected, all);
    }
    this.expected = this.requests.length;
    this.check();
  }

  /** How often each step's function was executed. */
  executed(expected) {
    assert.deepEqual(this.did, expected);
  }

  /** That it has ended in this state, says the server's log; the run in it. */
  async ended(state) {
    return await logOf(this, state);
  }

  /** Checks what holds for every run. */
  check() {
    if (this.expected !== undefined) {
      const all = listed(this.requests);
      assert.equal(this.requests.length, this.expected, `requests after the end of run ${this.id}:\n${all}`);
    }
    if (this.checked === this.requests.length) return;
    this.checked = this.requests.length;
    for (const one of this.requests) checkHeaders(this, one);
    checkPrefixes(this);
  }
}

/** What every delivery of a run carries. */
function checkHeaders(run, one) {
  const { headers } = one;
  const what = `run ${run.id}, ${shown(one)}`;
  assert.equal(headers["upstash-workflow-runid"], run.id, what);
  assert.match(headers["upstash-workflow-createdat"], /^\d{13}$/, what);
  assert.equal(headers["upstash-workflow-url"], `${origin}${one.path}`, what);
  assert.match(headers["upstash-retried"], /^\d+$/, what);
  assert.match(headers["upstash-message-id"], /^\S+$/, what);
  assert(headers["upstash-signature"], what);
  assert.equal(headers["upstash-region"], undefined, what);
  assert.equal(headers["content-type"], "application/json", what);
  for (const name of Object.keys(headers)) assert.doesNotMatch(name, /^upstash-(telemetry|forward|callback|feature)/, what);
  // With it a call's result would be taken for a log.
  if (one.kind === "result") assert.equal(headers["upstash-workflow-sdk-version"], undefined, what);
}

/** All logs that were sent are prefixes of one, and each ends with what it was sent for. */
function checkPrefixes(run) {
  const longest = new Map();
  for (const one of run.requests) {
    if (!["step", "unknown"].includes(one.kind) || !one.body?.length) continue;
    const text = one.body.toString();
    const log = JSON.parse(text);
    // As a body parser would write it again before the signature is verified.
    assert.equal(text, JSON.stringify(log));
    for (const entry of log) assert.deepEqual(Object.keys(entry), ["messageId", "body", "callType"]);
    const id = one.headers["upstash-message-id"];
    if (log.length > 1) assert.equal(log.at(-1).messageId, id, `run ${run.id}: a log that doesn't end with ${id}`);
    // A run id may be used again: instances have logs of their own.
    const instance = one.headers["upstash-workflow-createdat"];
    const before = longest.get(instance) ?? "[]";
    const [short, long] = before.length < text.length ? [before, text] : [text, before];
    assert(long.startsWith(short.slice(0, -1)), `run ${run.id}: two logs that differ:\n${short}\n${long}`);
    longest.set(instance, long);
  }
}

/** Checks all runs that there were: whether anything came after their ends, and no assertion of the app failed. */
export function checkAll() {
  for (const { requests } of routes.values()) {
    for (const one of requests) assert(!one.answer?.includes("AssertionError"), `${one.url}: ${one.answer}`);
  }
  for (const run of runs.values()) run.check();
}

// Answers of the server that get lost on their way to the app.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { Client } from "@upstash/qstash";

import { thirdParty, workflow } from "../app.mjs";
import { scenario, server, token } from "../support.mjs";

/** A proxy in front of the server that loses the first answer to each submission, once the server has given it. */
async function lossy() {
  const known = new Set();
  let lost = 0;
  const proxy = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    const { method, url } = request;
    const headers = { ...request.headers };
    for (const name of ["host", "connection", "content-length", "accept-encoding"]) delete headers[name];
    const answer = await fetch(`${server}${url}`, { method, headers, body: method === "GET" ? undefined : body });
    const text = await answer.text();
    // Of an older SDK's steps, the headers tell the attempts apart.
    const what = url.endsWith("/batch") ? JSON.parse(body).map((item) => [item.destination, item.body]) : String(body);
    const submission = JSON.stringify([method, url, what]);
    if (!known.has(submission)) {
      known.add(submission);
      lost += 1;
      return request.socket.destroy();
    }
    response.writeHead(answer.status, { "Content-Type": answer.headers.get("content-type") ?? "text/plain" }).end(text);
  });
  await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const baseUrl = `http://127.0.0.1:${proxy.address().port}`;
  return {
    // No retries of its own: the delivery is to be retried.
    client: new Client({ baseUrl, token, retry: false, enableTelemetry: false }),
    lost: () => lost,
    close: () => proxy.close() && proxy.closeAllConnections(),
  };
}

scenario("calls", "every answer of the server is lost once", {}, async () => {
  const proxy = await lossy();
  const other = thirdParty(() => ({ body: "called" }));
  const flow = await workflow(
    async (context, did) => {
      const one = await context.run("one", () => did("one", "one"));
      const [two, call, three] = await Promise.all([
        context.run("two", () => did("two", "two")),
        context.call("call", { url: other.url }),
        context.run("three", () => did("three", "three")),
      ]);
      await context.sleep("sleep", 1);
      const again = await context.call("again", { url: `${other.url}?again` });
      return [one, two, three, call.body, again.body];
    },
    { config: { retries: 3, retryDelay: "100" }, options: { qstashClient: proxy.client } }
  );
  const run = await flow.trigger();
  assert.deepEqual(await run.resultInTheEnd(), ["one", "two", "three", "called", "called"]);
  proxy.close();
  // To the first step, the plans, the branches' two results and the call, the call's result, the sleep, the other call
  // and its result, and the end.
  assert.equal(proxy.lost(), 10);
  other.counted(2);
  await run.ended("RUN_SUCCESS");
  for (const [name, count] of Object.entries(run.did)) assert(count <= 2, `${name}: ${count} times`);
});

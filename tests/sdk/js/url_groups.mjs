// URL groups, formerly topics.

import assert from "node:assert/strict";
import test from "node:test";

import { client, delivery, isTime, plain, receiverUrl, rejectsWith, unique } from "./support.mjs";

const [a, b, c] = ["a", "b", "c"].map((path) => `${receiverUrl}/${path}`);

test("a group is made, changed and deleted", async () => {
  const name = unique("group");
  await client.urlGroups.delete(name);
  await rejectsWith(404, client.urlGroups.get(name), `topic ${name} not found`);
  await client.urlGroups.addEndpoints({ name, endpoints: [{ name: "First endpoint", url: a }, { url: b }] });
  const group = await client.urlGroups.get(name);
  isTime(group.createdAt);
  isTime(group.updatedAt);
  assert.deepEqual(group, {
    name,
    createdAt: group.createdAt,
    updatedAt: group.updatedAt,
    endpoints: [{ name: "First endpoint", url: a }, { url: b }],
  });
  assert.deepEqual((await client.urlGroups.list()).filter((g) => g.name === name), [group]);
  assert.deepEqual(await client.topics.get(name), group);

  // A known name gets the URL, a known URL the name, and the rest is appended.
  const endpoints = [{ name: "First endpoint", url: c }, { name: "Second", url: b }, { url: a }];
  await client.urlGroups.addEndpoints({ name, endpoints });
  const changed = await client.urlGroups.get(name);
  assert.deepEqual(changed.endpoints, endpoints);
  assert.equal(changed.createdAt, group.createdAt);
  assert(changed.updatedAt >= group.updatedAt);

  await client.urlGroups.removeEndpoints({ name, endpoints: [{ name: "Second" }, { url: a }, { name: "unknown" }] });
  assert.deepEqual((await client.urlGroups.get(name)).endpoints, [{ name: "First endpoint", url: c }]);
  await client.urlGroups.removeEndpoints({ name, endpoints: [{ url: c }] });
  await rejectsWith(404, client.urlGroups.get(name));
  await rejectsWith(404, client.urlGroups.removeEndpoints({ name, endpoints: [{ url: c }] }));
  await client.urlGroups.delete(name);
});

test("a message for a group is one for each endpoint", async () => {
  const name = unique("group");
  await client.urlGroups.addEndpoints({ name, endpoints: [{ name: "the first", url: a }, { url: b }] });
  for (const destination of [{ urlGroup: name }, { topic: name }]) {
    const results = await client.publishJSON({ ...destination, body: { to: "all" } });
    assert.deepEqual(results.map((result) => [Object.keys(result).sort(), result.url]), [
      [["messageId", "url"], a],
      [["messageId", "url"], b],
    ]);
    assert.notEqual(results[0].messageId, results[1].messageId);
    const [first, second] = await Promise.all(results.map(({ messageId }) => client.messages.get(messageId)));
    assert.deepEqual([first.url, first.urlGroup, first.topicName, first.endpointName], [a, name, name, "the first"]);
    assert.deepEqual([second.url, second.urlGroup, second.endpointName], [b, name, undefined]);
    for (const { messageId, url } of results) {
      const request = await delivery(messageId);
      assert.equal(request.url, url);
      assert.equal(request.headers["upstash-topic-name"], name);
      assert.equal(request.body, '{"to":"all"}');
    }
  }
  await client.urlGroups.delete(name);
});

test("repeats are told for each endpoint", async () => {
  const name = unique("group");
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: a }] });
  const request = { urlGroup: name, deduplicationId: unique("dedup") };
  const [first] = await client.publish(request);
  await client.urlGroups.addEndpoints({ name, endpoints: [{ url: b }] });
  const [again, added] = await client.publish(request);
  assert.deepEqual(again, { messageId: first.messageId, url: a, deduplicated: true });
  assert.deepEqual(plain(added), { messageId: added.messageId, url: b });
});

test("what is wrong is refused", async () => {
  const name = unique("group");
  await rejectsWith(404, client.publish({ urlGroup: name }), `topic ${name} not found`);
  await rejectsWith(400, client.urlGroups.addEndpoints({ name, endpoints: [] }));
  await rejectsWith(400, client.urlGroups.addEndpoints({ name, endpoints: [{ url: "nowhere" }] }));
  await rejectsWith(400, client.urlGroups.addEndpoints({ name: "a name", endpoints: [{ url: a }] }));
  await assert.rejects(client.urlGroups.get(""), { name: "QstashError" });
  await rejectsWith(404, client.urlGroups.get(name));
});

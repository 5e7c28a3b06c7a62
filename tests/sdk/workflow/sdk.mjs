// The SDK that this process's apps and client stand on. The first argument names it: a version, and "-express" behind
// it for apps on Express instead of the web-standard handler.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const packages = {
  "0.2.23": "workflow-0-2",
  "1.0.0": "workflow-1-0",
  "1.1.1": "workflow-1-1",
  "1.3.3": "workflow-1-3",
};

const [, , wanted = "", ...parts] = process.argv;
const [version, platform = "web"] = wanted.split("-");
const name = packages[version];
if (!name || !["web", "express"].includes(platform)) {
  const known = Object.keys(packages).join(", ");
  throw new Error(`usage: main.mjs VERSION[-express] [PART OF A SCENARIO'S NAME…]; versions: ${known}`);
}

/** Of the scenarios' names, what was asked for; empty: all. */
export const wantedParts = parts;

export { version };
export const express = platform === "express";

// The package's own word for it has a "v" in front for some versions.
const manifest = createRequire(import.meta.url).resolve(`${name}/nextjs`).replace(/nextjs\.js$/, "package.json");
assert.equal(JSON.parse(readFileSync(manifest)).version.replace(/^v/, ""), version);

const number = (text) => text.split(".").reduce((sum, part) => sum * 1000 + Number(part), 0);

/** Whether the SDK is of this version or newer. */
export const since = (least) => number(version) >= number(least);

/** Whether the SDK is of this version or older. */
export const upTo = (most) => number(version) <= number(most);

/** Whether each step carries the configuration (retries, flow control, failure function), instead of the trigger alone. */
export const configuredAtSteps = !since("1.0.0");

export const {
  Client, WorkflowMiddleware, WorkflowNonRetryableError, WorkflowRetryAfterError, serve,
} = await import(name);

/** Makes several workflows that can invoke each other: `{ createWorkflow, serveMany }`. */
export const many = await import(`${name}/${express ? "express" : "nextjs"}`);

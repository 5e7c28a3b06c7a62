// The server's log of runs.

import assert from "node:assert/strict";

import { client, eventually } from "./support.mjs";

/** The log of a run that has come to this state. */
export async function logOf(run, state) {
  let last;
  return await eventually(
    () => `run ${run.id} is ${state}; it is ${JSON.stringify(last)}`,
    async () => {
      const { runs } = await client.logs({ workflowRunId: run.id });
      [last] = runs;
      return last?.workflowState === state && last;
    }
  );
}

// The mesh over HTTP: the key, models, health, a photo in, its job's steps out.

const KEY = "visionmesh-key";
const TRIES = 4;
const WAIT_S = 20;
export const LEAST_CONFIDENCE = 0.05; // asked of the mesh, so that the slider has something to show at once
export const ENDED = new Set(["succeeded", "failed", "canceled", "expired"]);

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `HTTP status ${status}`);
    this.status = status;
    this.code = document.code || "";
  }
}

export const useKey = key => sessionStorage.setItem(KEY, key.trim());

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { accept: "application/json", ...(key && { authorization: `Bearer ${key}` }), ...options.headers };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  let document = {};
  try { document = await answer.json(); } catch { /* a proxy's own words */ }
  const problem = new Problem(answer.status, document);
  problem.retryAfterS = Number(answer.headers.get("retry-after")) || 1;
  throw problem;
}

const read = async (path, options) => (await ask(path, options)).json();
const pause = seconds => new Promise(wake => setTimeout(wake, seconds * 1000));

export const models = () => read("/v1/models");
export const health = () => read("/health");

/** Submit a photo; a full mesh is asked again when it says so. Gives the job. */
export async function submit(blob, model) {
  const query = new URLSearchParams({ model, confidence: LEAST_CONFIDENCE, max_detections: 200 });
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
  const headers = { "content-type": "application/octet-stream", "idempotency-key": key };
  for (let tries = 1; ; tries++) {
    try {
      return await read(`/v1/jobs?${query}`, { method: "POST", body: blob, headers });
    } catch (error) {
      const passing = error instanceof Problem ? [429, 503].includes(error.status) : error instanceof TypeError;
      if (!passing || tries === TRIES) throw error;
      await pause((error.retryAfterS || 1) * (1 + Math.random()));
    }
  }
}

/** Tell of each step of a job until it has ended: by server-sent events, or by long polls where they do not come through. */
export async function follow(job, tell) {
  const path = `/v1/jobs/${encodeURIComponent(job.id)}`;
  const seen = step => { job = step; tell(step); };
  try {
    if (!ENDED.has(job.status)) await listen(`${path}/events`, seen);
  } catch (error) {
    if (error instanceof Problem && ![404, 405, 503].includes(error.status)) throw error;
  }
  while (!ENDED.has(job.status)) seen(await read(`${path}?wait=${WAIT_S}`));
  return job;
}

// fetch instead of EventSource: only it can send the key.
async function listen(path, tell) {
  const answer = await ask(path, { headers: { accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (buffer + value).split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n");
      if (data) tell(JSON.parse(data));
    }
  }
}

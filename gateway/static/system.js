// The mesh itself: workers, queues, GPUs and rates, from /health every few seconds while the page is looked at.

import { health, Problem } from "./mesh.js";

const EVERY_MS = 2000;
const MIB = 1 << 20;
const HIDDEN = { 401: "Give an API key above to see it.", 403: "Your key has not the scope to see it." };
let before = null;

const mib = bytes => `${Math.round(bytes / MIB)} MiB`;

function table(caption, names, rows) {
  const made = document.createElement("table");
  made.createCaption().textContent = caption;
  const head = made.createTHead().insertRow();
  for (const name of names) {
    const cell = head.appendChild(document.createElement("th"));
    cell.scope = "col";
    cell.textContent = name;
  }
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const value of row) line.insertCell().textContent = value;
  }
  const around = document.createElement("div");
  around.append(made);
  return around;
}

/** Jobs a second of each worker since the last look. */
function rates(workers, now) {
  const found = new Map();
  for (const worker of workers) {
    const earlier = before?.done.get(worker.name);
    const ran_s = (now - (before?.at ?? now)) / 1000;
    found.set(worker.name, earlier === undefined || ran_s <= 0 ? null : Math.max(worker.jobs_done - earlier, 0) / ran_s);
  }
  before = { at: now, done: new Map(workers.map(worker => [worker.name, worker.jobs_done])) };
  return found;
}

const gpuOf = worker => (worker.gpu || []).map(gpu =>
  `${gpu.name} ${gpu.utilization_percent}%, ${mib(gpu.memory_used_bytes)} of ${mib(gpu.memory_total_bytes)}`).join("; ");

function show(document_, body) {
  const perSecond = rates(document_.workers, performance.now());
  const rate = worker => (perSecond.get(worker.name) === null ? "" : perSecond.get(worker.name).toFixed(1));
  const gpus = document_.workers.filter(gpuOf).map(worker => [worker.kind, gpuOf(worker)]);
  const budget = document_.byte_budget;
  const parts = [
    table("Workers", ["kind", "process", "memory", "CPU", "jobs", "jobs/s"], document_.workers.map(worker =>
      [worker.kind, worker.pid, mib(worker.rss_bytes), `${Math.round(worker.cpu_percent)}%`,
        worker.kind === "gateway" ? "" : worker.jobs_done, worker.kind === "gateway" ? "" : rate(worker)])),
    table("Queues", ["stage", "waiting", "in progress", "oldest"], Object.entries(document_.queues).map(([name, depth]) =>
      [name, depth.waiting, depth.in_progress, `${(depth.oldest_age_ms / 1000).toFixed(1)} s`])),
    ...(gpus.length ? [table("GPUs", ["worker", "GPU"], gpus)] : []),
  ];
  const note = document.createElement("p");
  note.className = "dim";
  const ran = `up ${Math.round(document_.uptime_s / 60)} min`;
  const room = budget ? `, ${mib(budget.reserved_bytes)} of ${mib(budget.limit_bytes)} in flight` : "";
  note.textContent = `${ran}${room}${gpus.length ? "" : ", no GPU: models run on the CPU"}`;
  body.replaceChildren(...parts, note);
}

/** Watch the mesh from now on. */
export function watch(state, body) {
  async function look() {
    if (!document.hidden) {
      try {
        const document_ = await health();
        const missing = Object.entries(document_.checks).filter(([, holds]) => !holds).map(([name]) => name.replace("_", " "));
        state.className = `state ${document_.status}`;
        state.textContent = missing.length ? `${document_.status}: no ${missing.join(", no ")}` : document_.status;
        show(document_, body);
      } catch (error) {
        const why = error instanceof Problem ? HIDDEN[error.status] : "It does not answer.";
        state.className = error instanceof Problem ? "state" : "state degraded";
        state.textContent = "";
        body.replaceChildren(Object.assign(document.createElement("p"), { className: "dim", textContent: why || error.message }));
      }
    }
    setTimeout(look, EVERY_MS);
  }
  look();
}

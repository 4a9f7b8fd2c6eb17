// The page: photos in, each followed through the mesh, the chosen one shown with what was found on it.
//
//   drop, paste, choose ──▶ add ──▶ mesh.submit ──▶ mesh.follow ──▶ render (the chosen photo) and renderRecent (all of them)

import * as album from "./album.js";
import * as mesh from "./mesh.js";
import * as picture from "./picture.js";
import * as system from "./system.js";

const AT_ONCE = 4;
const STEPS = [["upload", "Upload"], ["queued", "Queued"], ["decoding", "Decode"], ["inferring", "Find"], ["ended", "Done"]];
const TIMES = [
  ["upload", "upload", "t-upload"], ["preprocess_wait", "waiting", "t-wait"], ["preprocess", "decode", "t-preprocess"],
  ["inference_wait", "waiting", "t-wait"], ["inference", "model", "t-inference"], ["postprocess", "boxes", "t-postprocess"],
];
const THEMES = ["auto", "light", "dark"];

const by = id => document.getElementById(id);
const frame = by("frame");
let photos = []; // the latest first: {at, name, blob, url, job, error}
let chosen = null;
let hidden = new Set(); // class names that are not shown
let waiting = [];
let running = 0;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text) { by("announce").textContent = text; }

function complain(error) {
  by("message").textContent = error ? error.message : "";
  by("message").hidden = !error;
  if (error?.status === 401) {
    by("message").hidden = true;
    by("key-form").hidden = false;
  }
}

// --- photos through the mesh

function add(files) {
  const pictures = [...files].filter(file => file.type.startsWith("image/") || !file.type);
  if (!pictures.length) return complain(new Error("That is not a picture."));
  complain(null);
  for (const file of pictures) {
    const photo = { at: performance.timeOrigin + performance.now(), name: file.name || "pasted", blob: file, url: URL.createObjectURL(file), job: null };
    photos.unshift(photo);
    waiting.push(photo);
  }
  choose(photos[0]);
  work();
}

async function work() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    send(waiting.shift()).finally(() => { running--; work(); });
  }
}

async function send(photo) {
  const update = job => {
    photo.job = job;
    if (photo === chosen) render();
    renderRecent();
  };
  try {
    const accepted = await mesh.submit(photo.blob, by("model").value);
    update(accepted);
    await mesh.follow(accepted, update);
    await album.keep(photo);
    say(`${photo.name}: ${summary(photo)}`);
  } catch (error) {
    photo.error = error;
    complain(error);
    update(photo.job);
  }
}

function summary(photo) {
  const job = photo.job;
  if (photo.error) return photo.error.message;
  if (!job) return "uploading";
  if (!mesh.ENDED.has(job.status)) return job.stage || job.status;
  if (job.status !== "succeeded") return job.error?.detail || job.status;
  const counts = new Map();
  for (const found of visible(job)) counts.set(found.label, (counts.get(found.label) || 0) + 1);
  return [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ") || "nothing found";
}

// --- the chosen photo

const least = () => by("confidence").value / 100;
const confident = job => (job?.detections || []).map((found, index) => ({ ...found, index })).filter(found => found.confidence >= least());
const visible = job => confident(job).filter(found => !hidden.has(found.label));

function choose(photo) {
  chosen = photo;
  hidden = new Set();
  document.body.classList.toggle("has-photo", Boolean(photo));
  by("work").hidden = !photo;
  if (photo) {
    by("photo").src = photo.url;
    by("name").textContent = photo.name;
    render();
  }
  renderRecent();
}

function render() {
  const { job, error } = chosen;
  renderStages(job, error);
  const why = error?.message || job?.error?.detail;
  by("failed").hidden = !why;
  by("failed").textContent = why || "";
  by("size").textContent = job?.image ? `${job.image.width} × ${job.image.height} ${job.image.format}` : "";
  by("photo").alt = job?.status === "succeeded" ? `${chosen.name}: ${summary(chosen)}` : chosen.name;
  if (job?.image) shape(job.image.width, job.image.height);
  const ended = Boolean(job?.detections);
  for (const id of ["save-picture", "save-json"]) by(id).disabled = !ended;
  by("again").disabled = !error && !mesh.ENDED.has(job?.status);
  renderFound();
  renderTimes(job);
}

function shape(width, height) {
  if (width && height) frame.style.setProperty("--ratio", width / height);
}

function renderStages(job, error) {
  const ended = error || mesh.ENDED.has(job?.status);
  const at = ended ? "ended" : !job ? "upload" : job.status === "queued" ? "queued" : job.stage === "decoding" ? "decoding" : "inferring";
  const reached = STEPS.findIndex(([name]) => name === at);
  const bad = error || (ended && job.status !== "succeeded");
  by("stages").classList.toggle("failed", Boolean(bad));
  by("stages").replaceChildren(...STEPS.map(([name, text], index) => {
    const step = element("li", { textContent: name === "ended" && bad ? job?.status || "failed" : text });
    if (index < reached || ended) step.className = "done";
    else if (index === reached) step.setAttribute("aria-current", "step");
    return step;
  }));
}

function renderFound() {
  by("confidence-value").textContent = `${by("confidence").value}%`;
  const job = chosen?.job;
  const shown = visible(job);
  picture.show(frame, job?.image, shown);
  renderClasses(confident(job));
  by("found-title").textContent = job?.detections ? `Found ${shown.length}` : "Found";
  by("found").replaceChildren(...shown.map(found => {
    const row = element("button", { type: "button", className: "row" },
      element("i", { className: "swatch" }), element("span", { textContent: found.label }),
      element("span", { className: "dim", textContent: `${Math.round(found.confidence * 100)}%` }));
    row.firstChild.style.background = picture.colourOf(found.class_id);
    for (const name of ["focus", "mouseenter"]) row.addEventListener(name, () => picture.pick(frame, found.index));
    for (const name of ["blur", "mouseleave"]) row.addEventListener(name, () => picture.pick(frame, null));
    return element("li", {}, row);
  }));
  if (job?.detections && !shown.length) by("found").append(element("li", { className: "nothing", textContent: "Nothing at this confidence." }));
}

function renderClasses(found) {
  const counts = new Map();
  for (const each of found) counts.set(each.label, { id: each.class_id, count: (counts.get(each.label)?.count || 0) + 1 });
  const focused = document.activeElement?.dataset?.label;
  by("classes").replaceChildren(...[...counts].map(([label, { id, count }]) => {
    const chip = element("button", { type: "button", className: "chip" },
      element("i", { className: "swatch" }), `${label} ${count}`);
    chip.firstChild.style.background = picture.colourOf(id);
    chip.dataset.label = label;
    chip.setAttribute("aria-pressed", String(!hidden.has(label)));
    chip.addEventListener("click", () => {
      if (!hidden.delete(label)) hidden.add(label);
      renderFound();
    });
    return chip;
  }));
  if (focused) by("classes").querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
}

function renderTimes(job) {
  const times = job?.status === "succeeded" ? job.timings_ms : {};
  const parts = TIMES.filter(([name]) => times[name] !== undefined);
  by("total").textContent = times.total === undefined ? "" : `${times.total.toFixed(0)} ms`
    + (job.batch_size > 1 ? `, in a batch of ${job.batch_size}` : "") + `, ${job.model} on track ${job.track}`;
  by("times").replaceChildren(...parts.map(([name, , look]) => {
    const bar = element("i", { className: look });
    bar.style.flex = `${Math.max(times[name], 0.01)} 0 0`;
    return bar;
  }));
  const text = parts.map(([name, label]) => `${label} ${times[name].toFixed(1)} ms`);
  by("times").setAttribute("aria-label", text.length ? `Time by stage: ${text.join(", ")}` : "No times yet");
  by("times-list").replaceChildren(...parts.map(([name, label, look]) => element("div", {},
    element("i", { className: `swatch ${look}` }), element("dt", { textContent: label }), element("dd", { textContent: times[name].toFixed(1) }))));
}

// --- recent photos

function renderRecent() {
  by("recent-section").hidden = !photos.length;
  const focused = document.activeElement?.dataset?.at;
  by("recent").replaceChildren(...photos.map(photo => {
    const card = element("button", { type: "button", className: "card" },
      element("img", { src: photo.url, alt: "", loading: "lazy" }), element("span", { textContent: photo.name }),
      element("span", { className: photo.error || photo.job?.error ? "bad" : "dim", textContent: summary(photo) }));
    card.dataset.at = photo.at;
    card.dataset.status = photo.error ? "refused" : photo.job?.status || "uploading";
    card.setAttribute("aria-current", String(photo === chosen));
    card.addEventListener("click", () => choose(photo));
    return element("li", {}, card);
  }));
  if (focused) by("recent").querySelector(`[data-at="${focused}"]`)?.focus();
}

async function remember() {
  photos.push(...(await album.all()).map(kept => ({ ...kept, url: URL.createObjectURL(kept.blob) })));
  renderRecent();
}

async function forget() {
  await album.forget();  // only what is really gone disappears
  photos = photos.filter(photo => !photo.error && !mesh.ENDED.has(photo.job?.status));
  choose(null);
}

// --- the rest of the page

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => chosen.name.replace(/\.[^.]*$/, "");

async function loadModels() {
  try {
    const { models, default: default_ } = await mesh.models();
    const tracks = Map.groupBy ? Map.groupBy(models, model => model.track) : new Map(models.map(model => [model.track, models.filter(other => other.track === model.track)]));
    by("model").replaceChildren(...[...tracks].sort().map(([track, of]) => {
      const group = element("optgroup", { label: `Track ${track}, NMS in the ${of[0].nms_location}` });
      group.append(...of.map(model => element("option", { value: model.name, textContent: model.ready ? model.name : `${model.name} (not ready)` })));
      return group;
    }));
    by("model").value = default_;
    by("confidence").value = Math.round((models.find(model => model.name === default_)?.confidence ?? 0.4) * 100);
    by("key-form").hidden = true;
    complain(null);
  } catch (error) {
    complain(error);
  }
}

function useTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  by("theme").textContent = `Theme: ${name}`;
  localStorage.setItem("visionmesh-theme", name);
}

const tried = async (work, ...given) => { try { await work(...given); } catch (error) { complain(error); } };

by("choose").addEventListener("click", () => by("files").click());
by("files").addEventListener("change", event => { add(event.target.files); event.target.value = ""; });
by("example").addEventListener("click", () => tried(async () => {
  const answer = await fetch("/static/coffee.jpg");
  add([new File([await answer.blob()], "coffee.jpg", { type: "image/jpeg" })]);
}));
document.addEventListener("paste", event => { if (event.clipboardData.files.length) add(event.clipboardData.files); });
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dragging"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
});
by("photo").addEventListener("load", event => shape(event.target.naturalWidth, event.target.naturalHeight));
by("confidence").addEventListener("input", () => { renderFound(); renderRecent(); });
by("again").addEventListener("click", () => add([new File([chosen.blob], chosen.name, { type: chosen.blob.type })]));
by("save-picture").addEventListener("click", () => tried(async () =>
  save(await picture.draw(chosen.blob, chosen.job.image, visible(chosen.job)), `${stem()}-detections.jpg`)));
by("save-json").addEventListener("click", () =>
  save(new Blob([JSON.stringify({ ...chosen.job, detections: visible(chosen.job).map(({ index, ...found }) => found) }, null, 1)]), `${stem()}.json`));
by("clear").addEventListener("click", forget);
by("theme").addEventListener("click", () =>
  useTheme(THEMES[(THEMES.indexOf(localStorage.getItem("visionmesh-theme") || "auto") + 1) % THEMES.length]));
by("key-form").addEventListener("submit", event => { event.preventDefault(); mesh.useKey(by("key").value); loadModels(); });
new ResizeObserver(() => { if (chosen?.job) picture.fit(frame, chosen.job.image, visible(chosen.job)); }).observe(frame);

useTheme(localStorage.getItem("visionmesh-theme") || "auto");
await loadModels();
await remember();
document.documentElement.dataset.ready = "true"; // for whoever drives this page
system.watch(by("state"), by("system-body"));

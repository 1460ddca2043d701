// SPDX-License-Identifier: Apache-2.0
// The result page. It knows a task instance from its address, asks Airflow's REST API about it with the session of
// the user who looks, and shows what it gets as text and as http(s) addresses, never as markup.
"use strict";

const REFRESH_MS = 3000;
const KEPT_DAYS = 14; // how long Luma keeps results
const FRAME = 1 / 25;
const DRIFT = 0.08; // seconds the two videos may be apart before one is set right

const query = new URLSearchParams(location.search);
const task = {
  dagId: query.get("dag_id") ?? "",
  runId: query.get("run_id") ?? "",
  taskId: query.get("task_id") ?? "",
  mapIndex: /^\d+$/.test(query.get("map_index") ?? "") ? Number(query.get("map_index")) : -1,
};
const root = location.pathname.replace(/\/luma\/result\/?$/, "");
const byId = (id) => document.getElementById(id);
const [original, modified] = [byId("original"), byId("modified")];

// -- asking Airflow ------------------------------------------------------------------------------------------------

class Refused extends Error {}

const instancePath = ["/api/v2/dags", task.dagId, "dagRuns", task.runId, "taskInstances", task.taskId]
  .map((part, i) => (i % 2 && i > 0 ? encodeURIComponent(part) : part))
  .join("/");

async function ask(path) {
  const answer = await fetch(root + path, { headers: { Accept: "application/json" }, credentials: "same-origin" });
  if (answer.status === 401) throw new Refused("You are not signed in. Sign in to Airflow, then reload this page.");
  if (answer.status === 403) throw new Refused("You may not see this task. Ask for access to its DAG.");
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`Airflow answers with HTTP ${answer.status}`);
  return answer.json();
}

async function xcom(key) {
  const entry = await ask(`${instancePath}/xcomEntries/${key}?map_index=${task.mapIndex}`);
  if (entry === null || typeof entry.value !== "string") return entry?.value ?? null;
  try {
    return JSON.parse(entry.value);
  } catch {
    return entry.value;
  }
}

async function load() {
  const instance = await ask(instancePath + (task.mapIndex >= 0 ? `/${task.mapIndex}` : ""));
  if (instance === null) throw new Refused("There is no such task here.");
  const pushed = await ask(`${instancePath}/xcomEntries?map_index=${task.mapIndex}&limit=100`);
  const keys = new Set((pushed?.xcom_entries ?? []).map((entry) => entry.key));
  const [request, id, result, error] = await Promise.all(
    ["luma_request", "luma_task_id", "return_value", "luma_error"].map((key) => (keys.has(key) ? xcom(key) : null)),
  );
  const asObject = (value) => (value !== null && typeof value === "object" ? value : {});
  return { instance, request: asObject(request), id, result: asObject(result), error: asObject(error) };
}

// -- showing -------------------------------------------------------------------------------------------------------

const ENDED_BADLY = new Set(["failed", "upstream_failed", "skipped", "removed"]);

function show({ instance, request, id, result, error }) {
  const state = instance.state ?? "none";
  const urls = texts(result.result_urls).map(webAddress).filter(Boolean);
  const isOver = state === "success" || ENDED_BADLY.has(state);
  byId("content").hidden = false;
  byId("prompt").textContent = text(request.prompt) || "Not known yet";
  setSource(original, webAddress(request.video_url), isOver ? "The original is not known" : "");
  if (urls.length) setSource(modified, urls[0]);
  else note(modified, absence(state, result), isOver ? "" : "busy");
  showState(state, instance, urls.length);
  showProblem(state, error);
  showResults(urls);
  showFacts({ instance, id: text(id) || text(result.luma_task_id), result });
  return isOver;
}

function absence(state, result) {
  if (state === "success" && result.status === "GENERATING") return "Submitted; this task does not wait for the video";
  if (state === "success") return "The task has returned no video";
  if (ENDED_BADLY.has(state)) return "There is no video";
  return "Luma is at work";
}

function showState(state, instance, hasVideo) {
  const busy = state !== "success" && !ENDED_BADLY.has(state);
  const words = state === "deferred" ? "waiting for Luma" : state.replaceAll("_", " ");
  const badge = byId("state");
  badge.dataset.kind = busy ? "busy" : state === "success" ? "good" : "bad";
  badge.dataset.since = busy && instance.start_date ? instance.start_date : "";
  badge.dataset.words = state === "success" && hasVideo ? "finished" : words;
  tick();
  document.title = `${badge.dataset.words} · Luma result`;
}

function tick() {
  const { since, words } = byId("state").dataset;
  if (words === undefined) return;
  const elapsed = since ? ` · ${duration((Date.now() - Date.parse(since)) / 1000)}` : "";
  if (byId("state").textContent !== words + elapsed) byId("state").textContent = words + elapsed;
}

function showProblem(state, error) {
  const failed = ENDED_BADLY.has(state) || state === "up_for_retry";
  byId("problem").hidden = !failed;
  if (!failed) return;
  const code = Number.isInteger(error.code) ? ` (code ${error.code})` : "";
  byId("problem-title").textContent =
    state === "up_for_retry" ? "The last try failed; Airflow will try again" : "This task has no result";
  byId("problem-words").textContent = text(error.msg)
    ? text(error.msg) + code
    : "It ended without a word from Luma. The log says why.";
  byId("problem-remedy").textContent = text(error.remedy) || REMEDIES[error.type] || "";
}

const REMEDIES = {
  LumaGenerationError: "Luma could not make this video. Change the prompt or the clip, then clear the task.",
  LumaTimeoutError: "The job may still end at Luma: a retry, or a LumaTaskSensor with its id, fetches the result.",
  LumaRateLimitError: "Let the task retry, or give it a pool with fewer slots.",
  LumaUnavailableError: "Let the task retry: a job that was accepted is continued, not submitted again.",
  LumaValidationError: "Correct the parameter that is named above, then clear the task.",
};

function showResults(urls) {
  byId("results").replaceChildren(
    ...urls.flatMap((url, i) => {
      const number = urls.length > 1 ? ` ${i + 1}` : "";
      const download = element("a", `Download${number}`, { className: "button first", href: url, download: "" });
      download.target = "_blank";
      download.rel = "noopener noreferrer";
      const actions = [download, copyButton(`Copy link${number}`, url)];
      if (urls.length > 1) {
        const watch = element("button", `Show${number}`, { type: "button" });
        watch.addEventListener("click", () => setSource(modified, url));
        actions.unshift(watch);
      }
      return actions;
    }),
  );
}

function showFacts({ instance, id, result }) {
  const [created, completed] = [Date.parse(result.created_at), Date.parse(result.completed_at)];
  const facts = [
    ["Luma task", id || "not known yet", id],
    ["Made by Luma in", completed >= created ? duration((completed - created) / 1000) : ""],
    ["Submitted", when(created)],
    ["Finished", when(completed)],
    ["Kept by Luma until", Number.isNaN(completed) ? "" : when(completed + KEPT_DAYS * 86400000)],
    ["Clip", Number.isFinite(modified.duration) ? `${modified.duration.toFixed(1)} s` : ""],
    ["Map index", task.mapIndex >= 0 ? [task.mapIndex, text(instance.rendered_map_index)].filter((x) => x !== "").join(": ") : ""],
    ["Try", instance.try_number ? `${instance.try_number}` : ""],
  ].filter(([, value]) => value !== "");
  byId("facts").replaceChildren(
    ...facts.flatMap(([name, value, copied]) => {
      const dd = element("dd", value);
      if (copied) dd.append(" ", copyButton("Copy", copied));
      return [element("dt", name), dd];
    }),
  );
}

// -- two videos as one ---------------------------------------------------------------------------------------------

const pair = [original, modified];
const ready = () => pair.filter((video) => video.readyState >= HTMLMediaElement.HAVE_METADATA && !video.error);
const leader = () => ready().at(-1); // the modified one, once it is there
let isPlaying = false;

function setSource(video, url, otherwise = "") {
  if (!url) return note(video, otherwise);
  if (video.dataset.url === url) return;
  video.dataset.url = url;
  note(video, "");
  video.src = url;
}

function note(video, words, kind = "") {
  const element = byId(`${video.id}-note`);
  element.textContent = words;
  element.dataset.kind = kind;
}

function cannotPlay(video) {
  const finished = Date.parse(shown?.result.completed_at);
  const isExpired = video === modified && Date.now() > finished + KEPT_DAYS * 86400000;
  if (isExpired) return `This video has expired: Luma keeps results for ${KEPT_DAYS} days. Clear the task to make it anew.`;
  return video === modified
    ? `This video cannot be played. It may have expired (Luma keeps results for ${KEPT_DAYS} days), or be of a kind this browser does not play.`
    : "The original cannot be played here: its address may have expired, or may not be reachable from this browser.";
}

function play(on) {
  isPlaying = on && ready().length > 0;
  byId("play").textContent = isPlaying ? "Pause" : "Play";
  for (const video of ready()) {
    if (!isPlaying) video.pause();
    // A video that cannot play says so by its error event.
    else if (!video.ended) video.play().catch(() => {});
  }
  if (isPlaying) requestAnimationFrame(keepInStep);
}

function seek(seconds) {
  const end = leader()?.duration ?? 0;
  const to = Math.min(Math.max(seconds, 0), end);
  for (const video of ready()) video.currentTime = Math.min(to, video.duration);
  showTime(to);
}

function keepInStep() {
  const first = leader();
  if (!isPlaying || !first) return;
  if (first.ended) {
    if (byId("loop").getAttribute("aria-pressed") !== "true") return play(false);
    seek(0);
    play(true);
    return;
  }
  for (const video of ready()) {
    const target = Math.min(first.currentTime, video.duration);
    if (video !== first && !video.seeking && Math.abs(video.currentTime - target) > DRIFT) video.currentTime = target;
  }
  showTime(first.currentTime);
  requestAnimationFrame(keepInStep);
}

function showTime(seconds) {
  const end = leader()?.duration ?? 0;
  byId("seek").max = end || 1;
  byId("seek").value = seconds;
  byId("time").textContent = `${clock(seconds)} / ${clock(end)}`;
}

for (const video of pair) {
  video.addEventListener("loadedmetadata", () => {
    note(video, "");
    const now = pair.find((other) => other !== video)?.currentTime ?? 0;
    video.currentTime = Math.min(now, video.duration);
    showTime(now);
    if (isPlaying) play(true);
    if (shown) showFacts({ ...shown, id: text(shown.id) || text(shown.result.luma_task_id) });
  });
  video.addEventListener("error", () => note(video, cannotPlay(video)));
  video.addEventListener("click", () => play(!isPlaying));
}
byId("play").addEventListener("click", () => play(!isPlaying));
byId("seek").addEventListener("input", () => seek(Number(byId("seek").value)));
byId("loop").addEventListener("click", () => toggle(byId("loop")));
byId("sound").addEventListener("click", () => {
  modified.muted = !toggle(byId("sound")); // one of the two is enough
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button, a")) return;
  const at = leader()?.currentTime ?? 0;
  const keys = {
    " ": () => play(!isPlaying),
    ArrowLeft: () => seek(at - (event.shiftKey ? 1 : FRAME)),
    ArrowRight: () => seek(at + (event.shiftKey ? 1 : FRAME)),
    Home: () => seek(0),
    End: () => seek(Infinity),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});

// -- small things --------------------------------------------------------------------------------------------------

const text = (value) => (typeof value === "string" ? value : "");
const texts = (value) => (Array.isArray(value) ? value.filter((item) => typeof item === "string") : []);

function webAddress(value) {
  try {
    const url = new URL(text(value));
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : "";
  } catch {
    return "";
  }
}

function element(name, words, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: words }, properties);
}

function toggle(button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  return on;
}

function copyButton(words, value) {
  const button = element("button", words, { type: "button" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = "Copied";
    } catch {
      // The clipboard is only there on https and on this machine itself.
      prompt("Copy this:", value);
    }
    setTimeout(() => (button.textContent = words), 1500);
  });
  return button;
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

function clock(seconds) {
  const tenths = Math.floor((Number.isFinite(seconds) ? seconds : 0) * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

const when = (ms) => (Number.isNaN(ms) ? "" : new Date(ms).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" }));

// -- the page's life -----------------------------------------------------------------------------------------------

let shown = null;

async function refresh() {
  let isOver = false;
  try {
    shown = await load();
    isOver = show(shown);
  } catch (error) {
    const badge = byId("state");
    Object.assign(badge.dataset, { kind: "bad", since: "", words: error instanceof Refused ? error.message : "Airflow does not answer; trying again" });
    tick();
    isOver = error instanceof Refused;
    if (isOver) byId("content").hidden = byId("problem").hidden = true;
  }
  if (!isOver) setTimeout(refresh, REFRESH_MS);
}

function begin() {
  const theme = localStorage.getItem("theme"); // what the user has chosen in Airflow's UI
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  const mapped = task.mapIndex >= 0 ? `/mapped/${task.mapIndex}` : "";
  const page = ["dags", task.dagId, "runs", task.runId, "tasks", task.taskId].map(encodeURIComponent).join("/");
  const label = [task.dagId, task.runId, task.taskId].join(" / ") + (task.mapIndex >= 0 ? ` [${task.mapIndex}]` : "");
  for (const id of ["task-link", "log-link"]) byId(id).href = `${root}/${page}${mapped}`;
  byId("task-link").textContent = label;
  setInterval(tick, 1000);
  refresh();
}

begin();

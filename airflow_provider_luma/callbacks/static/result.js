// SPDX-License-Identifier: Apache-2.0
// The result page of the task instance that its address names. It reads Airflow's REST API with the session of the
// user who opens it, and shows what it reads as text and as http(s) addresses, never as markup.
"use strict";

const REFRESH_MS = 3000;
const KEPT_DAYS = 14; // how long Luma keeps results
const FRAME = 1 / 25;
const MAX_DRIFT = 0.08; // seconds by which the two videos may differ before one is corrected

// After its sign-in, Airflow 3.1 redirects to an address that ends before the first "&".
const KEPT_ADDRESS = "luma-result-before-sign-in";
if (!location.search.includes("task_id=") && sessionStorage.getItem(KEPT_ADDRESS)) {
  history.replaceState(null, "", sessionStorage.getItem(KEPT_ADDRESS));
}

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

// -- reading Airflow's REST API ------------------------------------------------------------------------------------

/** A refusal by Airflow that asking again does not change; `problem` is for showProblem. */
class Refused extends Error {
  constructor(state, problem) {
    super(state);
    this.problem = problem;
  }
}

const refusals = {
  401: () =>
    new Refused("not signed in", {
      title: "You are not signed in",
      words: "Airflow shows this task to those who may see its DAG.",
      link: ["Sign in to Airflow", `${root}/api/v2/auth/login?${new URLSearchParams({ next: location.href })}`],
    }),
  403: () =>
    new Refused("no access", {
      title: "You may not see this task",
      words: "Ask for access to its DAG.",
      link: ["Go to Airflow", `${root}/`],
    }),
  404: () =>
    new Refused("not found", {
      title: "There is no such task",
      words: "Its run may have been deleted, or the address may be incomplete.",
      link: ["Go to Airflow", `${root}/`],
    }),
};

const instancePath = ["/api/v2/dags", task.dagId, "dagRuns", task.runId, "taskInstances", task.taskId]
  .map((part, i) => (i % 2 && i > 0 ? encodeURIComponent(part) : part))
  .join("/");

async function ask(path) {
  const answer = await fetch(root + path, { headers: { Accept: "application/json" }, credentials: "same-origin" });
  if (answer.status === 404) return null;
  if (answer.status === 401) sessionStorage.setItem(KEPT_ADDRESS, location.href);
  if (answer.status in refusals) throw refusals[answer.status]();
  if (!answer.ok) throw new Error(`Airflow answers with HTTP ${answer.status}`);
  return answer.json();
}

async function xcom(key) {
  const entry = await ask(`${instancePath}/xcomEntries/${key}?map_index=${task.mapIndex}`);
  if (entry === null || typeof entry.value !== "string" || !/^\s*[[{"]/.test(entry.value)) return entry?.value ?? null;
  try {
    return JSON.parse(entry.value);
  } catch {
    return entry.value;
  }
}

async function load() {
  const instance = await ask(instancePath + (task.mapIndex >= 0 ? `/${task.mapIndex}` : ""));
  if (instance === null) throw refusals[404]();
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
  byId("prompt").textContent = text(request.prompt) || (isOver ? "Not known" : "Not known yet");
  setSource(original, webAddress(request.video_url), isOver ? "The original is not known" : "");
  if (urls.length) setSource(modified, urls[0]);
  else note(modified, absence(instance, result, id), isOver ? "" : "busy");
  showState(state, instance, urls.length);
  showProblem(state === "up_for_retry" || ENDED_BADLY.has(state) ? failure(state, error) : null);
  showResults(urls);
  showFacts({ instance, id: text(id) || text(result.luma_task_id), result });
  return isOver;
}

function absence(instance, result, id) {
  const state = instance.state;
  if (state === "success" && result.status === "GENERATING") return "Submitted; this task does not wait for the video";
  if (state === "success") return "The task has returned no video";
  if (ENDED_BADLY.has(state)) return "There is no video";
  if (state === "up_for_retry") return "Airflow will try again";
  if (id) return "Luma is at work";
  return isQueued(instance) ? "Luma accepts no more submissions at the moment" : "Not submitted yet";
}

/** Whether the task is queued to submit, and so waits for no job yet. */
function isQueued({ state, trigger }) {
  return state === "deferred" && String(trigger?.classpath).endsWith(".LumaSubmissionTrigger");
}

function showState(state, instance, hasVideo) {
  const busy = state !== "success" && !ENDED_BADLY.has(state);
  const waiting = isQueued(instance) ? "queued for submission" : "waiting for Luma";
  const words = { none: "not started", deferred: waiting }[state] ?? state.replaceAll("_", " ");
  const kind = busy ? "busy" : state === "success" ? "good" : "bad";
  showBadge(kind, state === "success" && hasVideo ? "finished" : words, busy ? instance.start_date : null);
}

function showBadge(kind, words, startedAt = null) {
  byId("badge").dataset.kind = kind;
  byId("elapsed").dataset.startedAt = startedAt ?? "";
  if (byId("state").textContent !== words) byId("state").textContent = words; // screen readers announce every change
  document.title = `${words} · Luma result`;
  tick();
}

function tick() {
  const { startedAt } = byId("elapsed").dataset;
  byId("elapsed").textContent = startedAt ? ` · ${duration((Date.now() - Date.parse(startedAt)) / 1000)}` : "";
}

function showProblem(problem) {
  byId("problem").hidden = problem === null;
  if (problem === null) return;
  for (const part of ["title", "words", "remedy"]) byId(`problem-${part}`).textContent = problem[part] ?? "";
  [byId("problem-link").textContent, byId("problem-link").href] = problem.link;
}

function failure(state, error) {
  const code = Number.isInteger(error.code) ? ` (code ${error.code})` : "";
  return {
    title: state === "up_for_retry" ? "The last try failed; Airflow will try again" : "This task has no result",
    words: text(error.msg) ? text(error.msg) + code : "Luma reported no error. The log says why the task ended.",
    remedy: text(error.remedy) || REMEDIES[error.type] || "",
    link: ["Open the task's log", byId("task-link").href],
  };
}

const REMEDIES = {
  LumaGenerationError: "Luma could not make this video. Change the prompt or the clip, then clear the task.",
  LumaTimeoutError: "The job may still be running at Luma: a retry, or a LumaTaskSensor with its id, fetches the result.",
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
        const select = element("button", `Show${number}`, { type: "button" });
        select.addEventListener("click", () => setSource(modified, url));
        actions.unshift(select);
      }
      return actions;
    }),
  );
}

function showFacts({ instance, id, result }) {
  const [created, completed] = [Date.parse(result.created_at), Date.parse(result.completed_at)];
  const facts = [
    ["Luma task", id || "not known yet", id],
    ["Processing time", completed >= created ? duration((completed - created) / 1000) : ""],
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

// -- playing both videos together ----------------------------------------------------------------------------------

const pair = [original, modified];
const ready = () => pair.filter((video) => video.readyState >= HTMLMediaElement.HAVE_METADATA && !video.error);
const leader = () => ready().at(-1); // the modified one, once it is loaded
let isPlaying = false;
let frame = 0;

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
  if (isExpired) return `This video has expired: Luma keeps results for ${KEPT_DAYS} days. Clear the task to submit a new job.`;
  return video === modified
    ? `This video cannot be played. It may have expired (Luma keeps results for ${KEPT_DAYS} days), or be of a kind this browser does not play.`
    : "The original cannot be played here: its address may have expired, or may not be reachable from this browser.";
}

function play(on) {
  isPlaying = on && ready().length > 0;
  if (isPlaying && leader().ended) seek(0);
  byId("play").textContent = isPlaying ? "Pause" : "Play";
  for (const video of ready()) {
    if (!isPlaying) video.pause();
    // A video that cannot be played fires an error event.
    else if (!video.ended) video.play().catch(() => {});
  }
  cancelAnimationFrame(frame);
  if (isPlaying) frame = requestAnimationFrame(keepInStep);
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
    return play(true);
  }
  for (const video of ready()) {
    const target = Math.min(first.currentTime, video.duration);
    if (video !== first && !video.seeking && Math.abs(video.currentTime - target) > MAX_DRIFT) video.currentTime = target;
  }
  showTime(first.currentTime);
  frame = requestAnimationFrame(keepInStep);
}

function showTime(seconds) {
  const end = leader()?.duration ?? 0;
  byId("seek").max = end || 1;
  byId("seek").value = seconds;
  byId("seek").setAttribute("aria-valuetext", clock(seconds));
  byId("time").textContent = `${clock(seconds)} / ${clock(end)}`;
}

for (const video of pair) {
  video.addEventListener("loadedmetadata", () => {
    note(video, "");
    byId("controls").disabled = false;
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
  modified.muted = !toggle(byId("sound")); // the sound of one video only
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !ready().length) return;
  if (event.key === " " && event.target.closest("button")) return; // Space presses the button
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

// -- helpers -------------------------------------------------------------------------------------------------------

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
      // Browsers offer the clipboard only over https and on localhost.
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

// -- refreshing ----------------------------------------------------------------------------------------------------

let shown = null;

async function refresh() {
  let isOver = false;
  try {
    shown = await load();
    isOver = show(shown);
  } catch (error) {
    isOver = error instanceof Refused;
    showBadge("bad", isOver ? error.message : "Airflow does not answer; trying again");
    if (isOver) {
      byId("content").hidden = true;
      showProblem(error.problem);
    }
  }
  if (!isOver) setTimeout(refresh, REFRESH_MS);
}

function begin() {
  const theme = localStorage.getItem("theme"); // what the user has chosen in Airflow's UI
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  const mapped = task.mapIndex >= 0 ? `/mapped/${task.mapIndex}` : "";
  const page = ["dags", task.dagId, "runs", task.runId, "tasks", task.taskId].map(encodeURIComponent).join("/");
  const label = [task.dagId, task.runId, task.taskId].join(" / ") + (task.mapIndex >= 0 ? ` [${task.mapIndex}]` : "");
  byId("task-link").href = `${root}/${page}${mapped}`;
  byId("task-link").textContent = label;
  setInterval(tick, 1000);
  refresh();
}

begin();

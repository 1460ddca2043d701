// SPDX-License-Identifier: Apache-2.0
// Code that the pages share. They read Airflow's REST API with the session of the user who opens them, and show what
// they read as text and http(s) addresses, never as markup.

// How long the address of a result is valid, by service. Results that name no service are kie.ai's.
const KEPT_MS = { kie: 14 * 86400000, luma: 3600000 };

// After the sign-in, Airflow 3.1 redirects to the page's address, but cuts it off before the first "&".
const KEPT_ADDRESS = "luma-result-before-sign-in";
const keptAddress = sessionStorage.getItem(KEPT_ADDRESS) ?? "";
sessionStorage.removeItem(KEPT_ADDRESS);
if (keptAddress.startsWith(location.href)) history.replaceState(null, "", keptAddress);

const query = new URLSearchParams(location.search);
/** The task instance that the page's address names, or all instances of a mapped task. */
export const task = {
  dagId: query.get("dag_id") ?? "",
  runId: query.get("run_id") ?? "",
  taskId: query.get("task_id") ?? "",
  // In a tab of Airflow's UI, this is a placeholder if the task is not mapped.
  mapIndex: /^\d+$/.test(query.get("map_index") ?? "") ? Number(query.get("map_index")) : -1,
};
// Airflow 3.4 identifies an iteration of a loop by these two.
const iteration = [...query].filter(([name]) => ["region_id", "region_index"].includes(name));
/** The query parameters that identify an instance of the task in the REST API. */
export const instanceQuery = (mapIndex) => new URLSearchParams([["map_index", mapIndex], ...iteration]);
export const root = location.pathname.replace(/\/luma\/[a-z]+\/?$/, "");
export const byId = (id) => document.getElementById(id);

// -- addresses -----------------------------------------------------------------------------------------------------

/** The address of one of our pages. */
export function pageOf(page, taskId, mapIndex = null, { dagId, runId } = task) {
  const named = { dag_id: dagId, run_id: runId, task_id: taskId };
  return `${root}/luma/${page}?${new URLSearchParams(mapIndex === null ? named : { ...named, map_index: mapIndex })}`;
}

/** The address of a task instance in Airflow's UI, which shows its log first. */
export function airflowPage(mapIndex = -1, taskId = task.taskId, { dagId, runId } = task) {
  const page = ["dags", dagId, "runs", runId, "tasks", taskId].map(encodeURIComponent).join("/");
  return `${root}/${page}${mapIndex >= 0 ? `/mapped/${mapIndex}` : ""}`;
}

/** Return the questions that tasks of this run are asking a person, each with the address of Airflow's form. */
export async function readQuestions() {
  let response = null;
  try {
    response = await ask(`${runPath}/hitlDetails?response_received=false&limit=100`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // users who may not answer see no questions
  }
  const ofInstance = ({ map_index: mapIndex, ...asking }) =>
    [-1, task.mapIndex].includes(mapIndex) && iteration.every(([name, value]) => `${asking[name]}` === value);
  return (response?.hitl_details ?? [])
    .filter((question) => asObject(question.task_instance).task_id && ofInstance(question.task_instance))
    .map(({ subject, task_instance: asking }) => ({
      subject: text(subject),
      address: `${airflowPage(asking.map_index, text(asking.task_id))}/required_actions${iteration.length ? `?${new URLSearchParams(iteration)}` : ""}`,
    }));
}

export function webAddress(value) {
  try {
    const url = new URL(text(value));
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : "";
  } catch {
    return "";
  }
}

/**
 * An address without secrets, for display: the part before an @ may be a credential, and so may the query of a web
 * address. In the path of a file on a disk or in an object store, "?" and "#" are ordinary characters.
 */
export function withoutSecrets(value) {
  const address = text(value);
  const isFile = /^(?!https?:)[a-z][a-z0-9+.-]*:\/\/|^\/(?!\/)/i.test(address);
  return (isFile ? address : address.replace(/[?#].*$/s, "")).replace(/^\s*([a-z][a-z0-9+.-]*:)?\/\/+[^/]*@/i, "$1//");
}

/** In a tab of Airflow's UI, open a link that leads out of our pages in place of the UI, not inside the tab. */
export function leavingTab(link) {
  link.addEventListener("click", (event) => {
    if (window.top === window) return;
    event.preventDefault();
    const outside = window.top.document.createElement("a");
    window.top.document.body.append(Object.assign(outside, { href: link.href, target: link.target, rel: link.rel }));
    outside.click();
    outside.remove();
  });
  return link;
}

// -- reading Airflow's REST API ------------------------------------------------------------------------------------

/** A refusal by Airflow that a repeated request would not change; `problem` is for showProblem. */
export class Refused extends Error {
  constructor(state, problem) {
    super(state);
    this.problem = problem;
  }
}

/** The refusal for a user who is not signed in, with what to do. */
export const signIn = (words, address = `${root}/api/v2/auth/login?${new URLSearchParams({ next: location.href })}`) =>
  new Refused("not signed in", { title: "You are not signed in", words, link: ["Sign in to Airflow", address] });

export const refusals = {
  // A proxy that requires a sign-in redirects to its page, or returns it in place of Airflow's response.
  proxy: () =>
    signIn("A web page, probably a sign-in page, replaced Airflow's response.", location.href.replace(/#.*/, "")),
  401: () => signIn("Airflow shows this task only to users who may see its DAG."),
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

const pathOf = (dagId, runId) => `/api/v2/dags/${encodeURIComponent(dagId)}/dagRuns/${encodeURIComponent(runId)}`;
export const runPath = pathOf(task.dagId, task.runId);
export const tasksPath = `${runPath}/taskInstances/${encodeURIComponent(task.taskId)}`;

/** Where the REST API has an instance of the page's task. */
export const placeOfTask = (mapIndex) => ({ path: tasksPath, query: instanceQuery(mapIndex) });

/** Where the REST API has any task instance that it has returned. */
export function placeOf({ dag_id: dagId, dag_run_id: runId, task_id: taskId, map_index: mapIndex, ...others }) {
  const path = `${pathOf(dagId, runId)}/taskInstances/${encodeURIComponent(taskId)}`;
  return { path, query: new URLSearchParams({ map_index: mapIndex, ...regionOf(others) }) };
}

/** What distinguishes an iteration of a loop, from Airflow 3.4 on. */
export const regionOf = ({ region_id, region_index }) => (region_id ? { region_id, region_index } : {});

const TIMEOUT_MS = 60000;

/** A response from Airflow with an error that may be temporary. */
class HttpError extends Error {}

/** Return the JSON of Airflow's response, or null if there is no such resource. */
export async function ask(path) {
  const signal = AbortSignal.timeout(TIMEOUT_MS); // otherwise one missing response would stop the page's updates
  const options = { headers: { Accept: "application/json" }, credentials: "same-origin", redirect: "manual", signal };
  const response = await fetch(root + path, options);
  if (response.status === 404) return null;
  if (response.status === 401) sessionStorage.setItem(KEPT_ADDRESS, location.href);
  if (response.status in refusals) throw refusals[response.status]();
  const isJson = /^application\/([\w.-]+\+)?json\b/.test(response.headers.get("Content-Type") ?? "");
  if (response.type === "opaqueredirect" || (response.ok && !isJson)) throw refusals.proxy();
  if (!response.ok) throw new HttpError(`Airflow responded with HTTP ${response.status}`);
  return response.json();
}

async function xcom(key, { path, query }) {
  const entry = await ask(`${path}/xcomEntries/${key}?${query}`);
  if (entry === null || typeof entry.value !== "string" || !/^\s*[[{"]/.test(entry.value)) return entry?.value ?? null;
  try {
    return JSON.parse(entry.value);
  } catch {
    return entry.value;
  }
}

/** Requests pushed by 1.1.0 have no kind; those about films have no video_url. */
function isAboutFilm({ kind, video_url: videoUrl, modify_task_ids: modifyTaskIds }) {
  if (kind === "clip" || kind === "film") return kind === "film";
  return videoUrl === undefined && Array.isArray(modifyTaskIds);
}

/** The job of a task that has pushed nothing. */
export const NO_JOB = {
  isFilm: false, prompt: "", source: "", original: "", isCopy: false, recovery: "", price: NaN, modifyTaskIds: [], id: "", result: {}, film: "",
  urls: [], error: {},
};

/** Return what a task instance has pushed under these keys; null where it has pushed nothing. */
export async function readXComs(place, keys) {
  const values = await Promise.all(keys.map((key) => xcom(key, place)));
  return Object.fromEntries(keys.map((key, i) => [key, values[i]]));
}

/** What the XComs of a task instance say about its job. */
export function jobIn(value) {
  const [request, result, error] = [value.luma_request, value.return_value, value.luma_error].map(asObject);
  const isFilm = isAboutFilm(request);
  return {
    isFilm,
    prompt: text(request.prompt),
    source: text(request.source) || text(request.video_url),
    original: webAddress(isFilm ? request.source : request.video_url), // empty if a browser cannot play it
    isCopy: !isFilm && Boolean(text(request.source) && webAddress(request.video_url)),
    recovery: text(request.recovery),
    price: typeof request.price === "number" ? request.price : NaN,
    modifyTaskIds: texts(request.modify_task_ids),
    id: text(value.luma_task_id) || text(result.luma_task_id) || text(error.luma_task_id),
    result,
    film: text(value.return_value), // its address; a browser can only open an http(s) address
    urls: [...texts(result.result_urls), text(value.return_value)].map(webAddress).filter(Boolean),
    error,
  };
}

/** Return what a task instance has pushed about its job. First check which of the keys exist. */
export async function readJob(place, keys) {
  const pushed = await ask(`${place.path}/xcomEntries?${place.query}&limit=100`);
  const known = new Set((pushed?.xcom_entries ?? []).map((entry) => entry.key));
  return jobIn(await readXComs(place, keys.filter((key) => known.has(key))));
}

/** States of a task that is not running or waiting. A task that resumes passes through them, and keeps its XComs. */
const IDLE = new Set([null, "scheduled", "queued", "upstream_failed", "skipped", "removed"]);

/** Return what a task instance in this state has pushed, asking only for what there may be. */
export async function readJobIn(state, place, before = null) {
  if (IDLE.has(state)) return before ?? NO_JOB;
  if (state === "success") return jobIn(await readXComs(place, ["luma_request", "return_value"]));
  const failed = ENDED_BADLY.has(state) || state === "up_for_retry";
  return readJob(place, ["luma_request", "luma_task_id", ...(failed ? ["luma_error", "return_value"] : [])]);
}

// -- states --------------------------------------------------------------------------------------------------------

export const ENDED_BADLY = new Set(["failed", "upstream_failed", "skipped", "removed"]);
export const isOver = ({ state }) => state === "success" || ENDED_BADLY.has(state);

/** Whether the task is queued for submission, and so not waiting for a job yet. */
export function isQueued({ state, trigger }) {
  return state === "deferred" && String(trigger?.classpath).endsWith(".LumaSubmissionTrigger");
}

export function stateWords(instance, hasVideo = true) {
  const waiting = isQueued(instance) ? "queued for submission" : "waiting for Luma";
  const words = { none: "not started", deferred: waiting, success: hasVideo ? "finished" : "success" };
  const state = text(instance.state) || "none";
  return words[state] ?? state.replaceAll("_", " ");
}

/** The label of an instance of a mapped task: its map index, and its name if it has one. */
export function labelOf({ map_index: mapIndex, rendered_map_index: name }, otherwise = "") {
  const label = text(name) && name !== `${mapIndex}` ? name : otherwise;
  return label ? `${mapIndex} · ${label}` : `${mapIndex}`;
}

/** Why there is no video to show (yet). */
export function absence(instance, job) {
  const { state } = instance;
  if (job.film) return STORED;
  if (state === "success" && job.result.status === "GENERATING") return "Submitted; this task does not wait for the video";
  if (state === "success") return job.isFilm ? "The task returned no film" : "The task returned no video";
  if (ENDED_BADLY.has(state)) return job.isFilm ? "There is no film" : "There is no video";
  if (state === "up_for_retry") return "Airflow will try again";
  if (job.isFilm) return "The clips are being joined";
  if (job.id) return "Luma is processing the video";
  return isQueued(instance) ? "Luma is not accepting submissions at the moment" : "Not submitted yet";
}

/** Shown in place of a video without an http(s) address. */
export const STORED = "Stored where a browser cannot play it";

/** Browsers do not say why they cannot load a video. They never load an http address in an https page. */
export function whyUnplayable(url, what, reasons) {
  if (location.protocol === "https:" && url.startsWith("http:"))
    return `This page uses https, but ${what} has an http address, which browsers refuse to load here.`;
  return `This browser cannot load ${what}: ${reasons}.`;
}

const keptMs = ({ service }) => (Object.hasOwn(KEPT_MS, text(service)) ? KEPT_MS[service] : KEPT_MS.kie);

/** When the address of a result expires; NaN if the job has not ended. */
export const expiry = ({ result }) => Date.parse(text(result.completed_at)) + keptMs(result);

/** Whether each status check returns a new address of a result, which is valid for a short time only. */
export const isRenewable = ({ result }) => result.service === "luma";

/** Why a result cannot be played, and what to do. */
export function whyNotPlayed(job, url) {
  const isExpired = Date.now() > expiry(job);
  if (isRenewable(job))
    return isExpired
      ? "This page can no longer play the video: its address was valid for an hour. A download task requests a new one: clear that task, not this one, to run it again."
      : whyUnplayable(url, "the video", "its address has expired, or cannot be reached from here. A download task requests a new one");
  if (isExpired) return "This video has expired: Luma keeps results for 14 days. Clear the task to submit a new job.";
  return whyUnplayable(url, "the video", "its address cannot be reached from here, or Luma has deleted it");
}

// After one of these errors, there is no video to fetch.
const UNFETCHABLE = ["LumaGenerationError", "LumaResultMissingError", "LumaNotFoundError"];

/**
 * Whether a failed task has a job at Luma whose video can be fetched without paying again. A task with a result had
 * succeeded until a person marked it as failed; clearing it submits a new job.
 */
export const isFetchable = ({ id, urls, error }) => Boolean(id) && !urls.length && !UNFETCHABLE.includes(error.type);

/** How to fetch the video of such a job, if the task did not say. */
export const FETCH = "A LumaTaskSensor with this luma_task_id fetches its result; nothing new is billed";

/** Why a task ended without a video. */
export function errorWords({ state }, { error }) {
  const code = Number.isInteger(error.code) ? ` (code ${error.code})` : "";
  if (text(error.msg)) return text(error.msg) + code;
  if (state === "skipped" || state === "removed") return `This task was ${state}`;
  if (state === "upstream_failed") return "An upstream task failed";
  return "Luma reported no error. The log says why the task ended.";
}

// -- showing -------------------------------------------------------------------------------------------------------

export const text = (value) => (typeof value === "string" ? value : "");
export const texts = (value) => (Array.isArray(value) ? value.filter((item) => typeof item === "string") : []);
const asObject = (value) => (value !== null && typeof value === "object" ? value : {});

export function element(name, words, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: words }, properties);
}

/** Change an element's text only if it differs: screen readers announce every change. */
export function setText(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

export function showBadge(kind, words, page) {
  byId("badge").dataset.kind = kind;
  setText(byId("state"), words);
  document.title = `${words} · ${page}`;
}

export function showProblem(problem) {
  byId("problem").hidden = problem === null;
  if (problem === null) return;
  for (const part of ["title", "words", "remedy"]) setText(byId(`problem-${part}`), problem[part] ?? "");
  [byId("problem-link").textContent, byId("problem-link").href] = problem.link;
}

export function troubleWords(error) {
  if (error instanceof HttpError) return error.message;
  return error.name === "TimeoutError" ? "Airflow has not responded within a minute" : "Airflow does not respond";
}

/** Show why the page is incomplete; it keeps trying. */
export function showTrouble(error, page, link) {
  const title = troubleWords(error);
  const words = error instanceof HttpError ? "See the log of its API server." : "Its API server may be down or overloaded.";
  showBadge("bad", `${title}; trying again`, page);
  showProblem({ title, words: `${words} This page keeps trying.`, link });
}

export function copyButton(words, value) {
  const button = element("button", words, { type: "button" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = "Copied";
    } catch {
      // Browsers allow access to the clipboard only over https and on localhost.
      prompt("Copy this:", value);
    }
    setTimeout(() => (button.textContent = words), 1500);
  });
  return button;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

/** What a job costs, if that was known when it was submitted. */
export const priceWords = ({ price }) => (Number.isFinite(price) ? `about $${price.toFixed(2)}` : "");

const theme = localStorage.getItem("theme"); // as chosen in Airflow's UI
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
leavingTab(byId("problem-link"));

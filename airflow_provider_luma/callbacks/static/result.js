// SPDX-License-Identifier: Apache-2.0
// The result page of the task instance that its address names.
import {
  DAY_MS, ENDED_BADLY, KEPT_DAYS, Refused, STORED, absence, airflowPage, ask, byId, copyButton, duration, element, errorWords,
  instanceQuery, isExpired, isOver, labelOf, leavingTab, pageOf, readJob, readQuestions, refusals, setText, showBadge, showProblem, stateWords, task, tasksPath,
  text, webAddress, withoutSecrets,
} from "./common.js";

const REFRESH_MS = 3000;
const FRAME = 1 / 25;
const MAX_DRIFT = 0.08; // seconds by which the two videos may differ before one is corrected

const [original, modified] = [byId("original"), byId("modified")];

// -- showing -------------------------------------------------------------------------------------------------------

async function load() {
  const path = tasksPath + (task.mapIndex >= 0 ? `/${task.mapIndex}` : "");
  const instance = await ask(`${path}?${instanceQuery(task.mapIndex)}`);
  if (instance === null) {
    const isMapped = task.mapIndex < 0 && (await countSiblings()) > 0;
    if (isMapped) location.replace(pageOf("gallery", task.taskId));
    throw refusals[404]();
  }
  const job = await readJob(task.mapIndex, ["luma_request", "luma_task_id", "return_value", "luma_error"]);
  return { instance, job, questions: await readQuestions() };
}

function show({ instance, job, questions }) {
  const over = isOver(instance);
  byId("content").hidden = false;
  showKind(job);
  setText(byId("prompt"), job.prompt || (over ? "Not known" : "Not known yet"));
  setSource(original, webAddress(job.source), job.source ? STORED : over ? "The original is not known" : "");
  if (job.urls.length) setSource(modified, job.urls[0]);
  else note(modified, absence(instance, job), over ? "" : "busy");
  showState(instance, over, Boolean(job.urls.length || job.film));
  const failed = instance.state === "up_for_retry" || ENDED_BADLY.has(instance.state);
  showProblem(failed ? failure(instance.state, job.error) : null);
  showResults(job);
  showQuestions(questions);
  showFacts({ instance, job });
  return over;
}

const STORED_FILM = "Film and source are in storages that no browser can open; their addresses are below.";
const STORED_SOURCE = "The film is being made. Its source is in a storage that no browser can open; its address is below.";

/** A film is joined of clips, each with a prompt of its own; it usually lies where only these can be watched. */
function showKind({ isFilm, source, film, urls }) {
  byId("prompt-figure").hidden = isFilm;
  if (!isFilm) return;
  byId("player").hidden = !webAddress(source) && !urls.length;
  byId("stored").hidden = !byId("player").hidden;
  setText(byId("stored"), film ? STORED_FILM : STORED_SOURCE);
  setText(byId("original-title"), "Source");
  setText(byId("modified-title"), "Film");
}

function showState(instance, over, hasVideo) {
  const kind = over ? (instance.state === "success" ? "good" : "bad") : "busy";
  byId("elapsed").dataset.startedAt = over ? "" : (instance.start_date ?? "");
  showBadge(kind, stateWords(instance, hasVideo), "Luma result");
  tick();
}

function tick() {
  const { startedAt } = byId("elapsed").dataset;
  byId("elapsed").textContent = startedAt ? ` · ${duration((Date.now() - Date.parse(startedAt)) / 1000)}` : "";
}

function failure(state, error) {
  return {
    title: state === "up_for_retry" ? "The last try failed; Airflow will try again" : "This task has no result",
    words: errorWords(error),
    remedy: text(error.remedy) || text(REMEDIES[error.type]),
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

function showResults({ urls, modifyTaskIds }) {
  byId("results").replaceChildren(
    ...modifyTaskIds.map((id) => element("a", `The clips of ${id}`, { className: "button first", href: pageOf("gallery", id) })),
    ...urls.flatMap((url, i) => {
      const number = urls.length > 1 ? ` ${i + 1}` : "";
      const looks = { className: "button first", target: "_blank", rel: "noopener noreferrer" };
      const download = leavingTab(element("a", `Download${number}`, { ...looks, href: url, download: "" }));
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

function showQuestions(questions) {
  byId("questions").replaceChildren(
    ...questions.map(({ subject, address }) =>
      leavingTab(element("a", `Answer: ${subject}`, { className: "button first", href: address })),
    ),
  );
}

function showFacts({ instance, job }) {
  const [created, completed] = [Date.parse(job.result.created_at), Date.parse(job.result.completed_at)];
  const [source, film] = [job.source, job.film].map((address) => (webAddress(address) ? "" : withoutSecrets(address)));
  const facts = [
    [job.isFilm ? "Source" : "Original", source, copyOf(source)],
    ["Film", film, copyOf(film)],
    ["Luma task", job.isFilm ? "" : job.id || "not known yet", copyOf(job.id)],
    ["Processing time", completed >= created ? duration((completed - created) / 1000) : ""],
    ["Submitted", when(created)],
    ["Finished", when(completed)],
    ["Kept by Luma until", Number.isNaN(completed) ? "" : when(completed + KEPT_DAYS * DAY_MS)],
    ["Clip", job.urls.length && Number.isFinite(modified.duration) ? `${modified.duration.toFixed(1)} s` : ""],
    ["Map index", task.mapIndex >= 0 ? labelOf(instance) : ""],
    ["Try", instance.try_number ? `${instance.try_number}` : ""],
  ].filter(([, value]) => value !== "");
  byId("facts").replaceChildren(
    ...facts.flatMap(([name, value, more = []]) => {
      const dd = element("dd", value);
      dd.append(...more.flatMap((item) => [" ", item]));
      return [element("dt", name), dd];
    }),
  );
}

const copyOf = (value) => (value ? [copyButton("Copy", value)] : []);
const when = (ms) => (Number.isNaN(ms) ? "" : new Date(ms).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" }));

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
  const expired = `This video has expired: Luma keeps results for ${KEPT_DAYS} days. Clear the task to submit a new job.`;
  if (video === modified && shown && isExpired(shown.job)) return expired;
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
    if (shown) showFacts(shown);
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

function toggle(button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  return on;
}

function clock(seconds) {
  const tenths = Math.floor((Number.isFinite(seconds) ? seconds : 0) * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

// -- refreshing ----------------------------------------------------------------------------------------------------

let shown = null;

async function refresh() {
  let ended = false;
  try {
    shown = await load();
    ended = show(shown);
  } catch (error) {
    ended = error instanceof Refused;
    byId("elapsed").dataset.startedAt = "";
    showBadge("bad", ended ? error.message : "Airflow does not answer; trying again", "Luma result");
    tick();
    if (ended) {
      byId("content").hidden = true;
      showProblem(error.problem);
    }
  }
  if (!ended) setTimeout(refresh, REFRESH_MS);
}

/** Lead from one of many to all of them. */
async function linkGallery() {
  const count = task.mapIndex < 0 ? 0 : await countSiblings();
  if (!count) return;
  byId("gallery-link").href = pageOf("gallery", task.taskId);
  byId("gallery-link").textContent = `All ${count} of this task`;
}

async function countSiblings() {
  const siblings = await ask(`${tasksPath}/listMapped?limit=1`).catch(() => null);
  return siblings?.total_entries ?? 0;
}

function begin() {
  const label = [task.dagId, task.runId, task.taskId].join(" / ") + (task.mapIndex >= 0 ? ` [${task.mapIndex}]` : "");
  byId("task-link").href = airflowPage(task.mapIndex);
  byId("task-link").textContent = label;
  leavingTab(byId("task-link"));
  setInterval(tick, 1000);
  refresh();
  linkGallery();
}

begin();

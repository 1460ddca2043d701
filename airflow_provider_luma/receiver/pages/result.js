// SPDX-License-Identifier: Apache-2.0
// The result page of one task instance, which the page's address names.
import {
  ENDED_BADLY, NO_JOB, Refused, STORED, absence, airflowPage, ask, byId, copyButton, duration, element, errorWords, expiry, instanceQuery,
  isFetchable, isOver, isRenewable, labelOf, leavingTab, pageOf, readJob, readQuestions, refusals, setText, showBadge, showProblem, showTrouble,
  stateWords, task, tasksPath, text, webAddress, whyNotPlayed, whyUnplayable, withoutSecrets,
} from "./common.js";

const REFRESH_MS = 3000;
const MAX_DRIFT = 0.08; // seconds that the two videos may drift apart before one is corrected

const [prompt, original, modified] = ["prompt", "original", "modified"].map(byId);

// -- showing -------------------------------------------------------------------------------------------------------

async function loadInstance() {
  const path = tasksPath + (task.mapIndex >= 0 ? `/${task.mapIndex}` : "");
  const instance = await ask(`${path}?${instanceQuery(task.mapIndex)}`);
  if (instance !== null) return instance;
  const isMapped = task.mapIndex < 0 && (await countSiblings()) > 0;
  if (isMapped) location.replace(pageOf("gallery", task.taskId));
  throw refusals[404]();
}

const loadJob = () => readJob(task.mapIndex, ["luma_request", "luma_task_id", "return_value", "luma_error"]);

/** Show what has been loaded; a part that is null has not been loaded yet. */
function show({ instance, job, questions }, isFinal) {
  if (instance === null) return;
  const over = isOver(instance);
  // XComs that were read before the task ended lack its result.
  const isLoading = job === null || (over && !isFinal && !hasOutcome(job));
  byId("content").hidden = false;
  showState(instance, over, isLoading || Boolean(job.urls.length || job.film));
  const missing = isLoading ? "Loading …" : absence(instance, job);
  showKind(job ?? NO_JOB, missing);
  showJob(job ?? NO_JOB, over, isLoading ? missing : "");
  if (!job?.urls.length) note(modified, missing, over && !isLoading ? "" : "busy");
  const failed = instance.state === "up_for_retry" || ENDED_BADLY.has(instance.state);
  if (failed && !isLoading) showFailure(instance, job);
  else showProblem(null);
  showQuestions(questions ?? []);
  showFacts({ instance, job: job ?? NO_JOB, isLoading });
}

/** Whether the task has pushed its result or error, not just its request. */
const hasOutcome = ({ result, film, error }) => Boolean(text(result.luma_task_id) || film || text(error.type));

function showJob(job, over, loading) {
  setText(prompt, job.prompt || loading || (over ? "Not known" : "Not known yet"));
  // A long prompt scrolls, so the Tab key must reach it.
  if (prompt.scrollHeight > prompt.clientHeight) prompt.tabIndex = 0;
  else prompt.removeAttribute("tabindex");
  if (!job.isFilm) setText(byId("original-title"), job.isCopy ? "Original (uploaded copy)" : "Original");
  setSource(original, job.original, loading || (job.source ? STORED : over ? "The original is not known" : ""));
  if (job.urls.length) setSource(modified, job.urls[0]);
  showResults(job);
}

const STORED_FILM = "Film and source are stored where a browser cannot play them; their addresses are below.";
const STORED_SOURCE = "The source is stored where a browser cannot play it; its address is below.";

/** A film consists of clips with one prompt each. Usually a browser can play only the clips, not the film. */
function showKind({ isFilm, original, film, urls }, missing) {
  byId("prompt-figure").hidden = isFilm;
  if (!isFilm) return;
  byId("player").hidden = !original && !urls.length;
  byId("stored").hidden = !byId("player").hidden;
  setText(byId("stored"), film ? STORED_FILM : `${missing}. ${STORED_SOURCE}`);
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

/** Show why the task failed and, for a job that may be paid for, its id and what to do. */
function showFailure(instance, job) {
  const { id, error } = job;
  const fetch = isFetchable(job) ? job.recovery || FETCH : job.recovery && job.urls.length ? REPEAT : "";
  const remedies = new Set([text(error.remedy), fetch].filter(Boolean));
  showProblem({
    title: instance.state === "up_for_retry" ? "The last try failed; Airflow will try again" : "This task has no result",
    words: errorWords(instance, job),
    remedy: [...remedies].join(". ") || text(REMEDIES[error.type]),
    link: ["Open the task's log", byId("task-link").href],
  });
  const cost = Object.hasOwn(COSTS, error.type) ? COSTS[error.type] : " is paid for";
  const words = id ? `Luma task ${id}${cost}` : "";
  const line = byId("problem-job");
  if (line.dataset.words === words) return; // replacing the button would lose the keyboard focus
  line.dataset.words = words;
  line.replaceChildren(...(id ? [words, " ", copyButton("Copy id", id)] : []));
}

const COSTS = {
  LumaGenerationError: " failed; the Luma account shows whether it was billed",
  LumaNotFoundError: "",
};

const FETCH = "A LumaTaskSensor with this luma_task_id fetches its result; nothing new is billed";

const REPEAT = "Its video is above. Clearing this task submits another, separately billed, job";

const REMEDIES = {
  LumaGenerationError: "Luma could not make this video. Change the prompt or the clip, then clear the task.",
  LumaRateLimitError: "Let the task retry, or assign it to a pool with fewer slots.",
  LumaUnavailableError: "Let the task retry: it continues a job that Luma has accepted and does not submit it again.",
  LumaValidationError: "Correct the parameter named above, then clear the task.",
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

let factsShown = null;

function showFacts(known) {
  factsShown = known;
  const { instance, job, isLoading } = known;
  const [created, completed] = [Date.parse(job.result.created_at), Date.parse(job.result.completed_at)];
  const [source, film] = [job.source, job.film].map((address) => (webAddress(address) ? "" : withoutSecrets(address)));
  const facts = [
    [job.isFilm ? "Source" : "Original", source, copyOf(source)],
    ["Film", film, copyOf(film)],
    ["Luma task", job.isFilm || isLoading ? "" : job.id || (isOver(instance) ? "none" : "not known yet"), copyOf(job.id)],
    ["Processing time", completed >= created ? duration((completed - created) / 1000) : ""],
    ["Submitted", when(created)],
    ["Finished", when(completed)],
    [isRenewable(job) ? "Address valid until" : "Kept by Luma until", when(expiry(job))],
    [job.isFilm ? "Film length" : "Clip", job.urls.length && Number.isFinite(modified.duration) ? lengthOf(modified) : ""],
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

function lengthOf({ duration }) {
  const rate = isMeasured ? `, ${(1 / frameSeconds).toFixed(2).replace(/\.?0+$/, "")} frames per second` : "";
  return `${duration.toFixed(1)} s${rate}`;
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
  if (video.dataset.url === url) return video.error ? undefined : note(video, ""); // the note may say that it is unknown
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
  const { url } = video.dataset;
  const job = shown.job ?? NO_JOB;
  if (video === original && job.isCopy)
    return whyUnplayable(url, "the uploaded copy", "Luma has deleted it, or its address cannot be reached from here");
  if (video === original)
    return whyUnplayable(url, "the original", "its address cannot be reached from here, or has expired");
  if (job.isFilm) return whyUnplayable(url, "the film", "its address cannot be reached from here, or its format is not supported");
  return whyNotPlayed(job, url);
}

function play(on) {
  isPlaying = on && ready().length > 0;
  if (isPlaying && leader().ended) seek(0);
  byId("play").textContent = isPlaying ? "Pause" : "Play";
  for (const video of ready()) {
    if (!isPlaying) video.pause();
    // If a video cannot be played, its error event says so.
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

let frameSeconds = 1 / 25; // until measured
let isMeasured = false;

/** Measure the duration of a frame on a hidden copy of the video: a paused video does not reveal it. */
function measureFrame(url) {
  const copy = Object.assign(document.createElement("video"), { muted: true });
  if (!copy.requestVideoFrameCallback) return;
  const times = [];
  const onFrame = (_now, { mediaTime }) => {
    times.push(mediaTime);
    if (times.length < 6) return copy.requestVideoFrameCallback(onFrame);
    copy.removeAttribute("src");
    copy.load();
    // A dropped frame makes its interval longer, never shorter.
    const shortest = Math.min(...times.slice(1).map((time, i) => time - times[i]));
    if (!(shortest > 0.001) || leader()?.dataset.url !== url) return;
    [frameSeconds, isMeasured] = [shortest, true];
    showFacts(factsShown);
  };
  copy.requestVideoFrameCallback(onFrame);
  copy.src = url;
  copy.play().catch(() => {}); // a video that cannot be played is not measured
}

/** Step by frames. Seek to the middle of a frame, as its very start may still show the frame before. */
const step = (frames) => seek((Math.floor((leader()?.currentTime ?? 0) / frameSeconds + 1e-3) + frames + 0.5) * frameSeconds);

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
    if (video === leader()) {
      isMeasured = false;
      measureFrame(video.dataset.url);
    }
    if (factsShown) showFacts(factsShown);
  });
  video.addEventListener("error", () => note(video, cannotPlay(video)));
  video.addEventListener("click", () => play(!isPlaying));
}
byId("play").addEventListener("click", () => play(!isPlaying));
byId("seek").addEventListener("input", () => seek(Number(byId("seek").value)));
byId("loop").addEventListener("click", () => toggle(byId("loop")));
byId("sound").addEventListener("click", () => {
  modified.muted = !toggle(byId("sound")); // only one video has sound
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !ready().length) return;
  if (event.key === " " && event.target.closest("button")) return; // Space presses the button
  const at = leader()?.currentTime ?? 0;
  const keys = {
    " ": () => play(!isPlaying),
    ArrowLeft: () => (event.shiftKey ? seek(at - 1) : step(-1)),
    ArrowRight: () => (event.shiftKey ? seek(at + 1) : step(1)),
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

let shown = { instance: null, job: null, questions: null };
let isEndKnown = false;

/** Load everything concurrently; on the first load, show each part as soon as it arrives. */
async function refresh() {
  const fresh = {};
  const arriving = Object.entries({ instance: loadInstance(), job: loadJob(), questions: readQuestions() });
  const ends = await Promise.allSettled(
    arriving.map(async ([name, part]) => {
      fresh[name] = await part;
      if (shown[name] === null) show((shown = { ...shown, [name]: fresh[name] }), false);
    }),
  );
  const failures = ends.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
  const refusal = failures.find((failure) => failure instanceof Refused);
  if (refusal) return refuse(refusal);

  shown = { ...shown, ...fresh };
  // Only what was read after the task ended is complete.
  const isFinal = !failures.length && isOver(shown.instance) && (isEndKnown || hasOutcome(shown.job));
  show(shown, isFinal);
  if (isFinal) return;
  isEndKnown = !failures.length && isOver(shown.instance);
  if (failures.length) showTrouble(failures[0], "Luma result", ["Open the task in Airflow", byId("task-link").href]);
  setTimeout(refresh, isEndKnown ? 0 : REFRESH_MS);
}

function refuse({ message, problem }) {
  byId("elapsed").dataset.startedAt = "";
  showBadge("bad", message, "Luma result");
  tick();
  byId("content").hidden = true;
  showProblem(problem);
}

/** Link from one mapped task instance to all of them. */
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
  byId("elapsed").dataset.startedAt = new Date().toISOString(); // start of loading
  setInterval(tick, 1000);
  refresh();
  linkGallery();
}

begin();

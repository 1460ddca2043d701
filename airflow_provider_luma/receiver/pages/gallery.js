// SPDX-License-Identifier: Apache-2.0
// The gallery of all instances of a mapped task. It reads the states of all of them from Airflow; XComs and videos are
// loaded only for cards in view.
import {
  ENDED_BADLY, NO_JOB, Refused, absence, airflowPage, ask, byId, element, errorWords, isFetchable, isOver, isQueued, labelOf, leavingTab,
  pageOf, readJob, refusals, runPath, setText, showBadge, showProblem, showTrouble, stateWords, task, tasksPath, troubleWords, webAddress,
  whyNotPlayed, withoutSecrets,
} from "./common.js";

const PAGE_SIZE = 100; // Airflow's default limit
const POLL_MS = 4000; // per two pages, so that large runs are polled less often
const READERS = 4; // concurrent readers of XComs

// -- task instances ------------------------------------------------------------------------------------------------

/** The gallery's entries by map index: the task instance, what it has pushed, and its card. */
const entries = new Map();

const GROUPS = { all: "All", good: "Finished", busy: "In progress", waiting: "Waiting", bad: "Failed", skipped: "Skipped" };

function groupOf(instance) {
  const { state } = instance;
  if (state === "success") return "good";
  if (state === "skipped" || state === "removed") return "skipped";
  if (ENDED_BADLY.has(state)) return "bad";
  return (state === "deferred" && !isQueued(instance)) || state === "running" ? "busy" : "waiting";
}

/** Load all task instances, page by page. A task that is not mapped is a gallery of one. */
async function loadInstances() {
  let count = 0;
  let total = 1;
  while (count < total) {
    const page = await ask(`${tasksPath}/listMapped?limit=${PAGE_SIZE}&offset=${count}`);
    const instances = page?.task_instances ?? [await ask(tasksPath)].filter(Boolean);
    if (page === null && !instances.length) throw refusals[404]();
    if (!instances.length) break;
    count += instances.length;
    total = page?.total_entries ?? 1;
    instances.forEach(update);
    showOverview(total);
  }
  return count;
}

function update(instance) {
  const entry = entries.get(instance.map_index) ?? addEntry(instance.map_index);
  const version = [instance.state, instance.try_number, instance.trigger?.classpath].join();
  entry.instance = instance;
  if (entry.version === version && (isOver(instance) || entry.job?.source)) return;
  entry.version = version;
  entry.isStale = true;
  showEntry(entry);
  if (entry.inView) read(entry);
}

// -- XComs ---------------------------------------------------------------------------------------------------------

const waiting = new Set();
let readers = 0;

function read(entry) {
  waiting.add(entry);
  if (readers < READERS) readNext();
}

async function readNext() {
  readers += 1;
  for (const entry of waiting) {
    waiting.delete(entry);
    if (!entry.inView || !entry.isStale) continue;
    const { version } = entry;
    try {
      entry.job = await readEntry(entry);
      entry.trouble = "";
      entry.isStale = entry.version !== version;
      learnFile(entry.job);
    } catch (error) {
      if (error instanceof Refused) refuse(error);
      entry.trouble = troubleWords(error);
      setTimeout(read, POLL_MS, entry);
    }
    showEntry(entry);
  }
  readers -= 1;
}

/** States of a task that is not running or waiting. A task that resumes passes through them, and keeps its XComs. */
const IDLE = new Set([null, "scheduled", "queued", "upstream_failed", "skipped", "removed"]);

async function readEntry({ instance, job }) {
  const { map_index: mapIndex, state } = instance;
  if (IDLE.has(state)) return job ?? NO_JOB;
  if (state === "success") return readJob(mapIndex, ["luma_request", "return_value"], { isComplete: true });
  const failed = ENDED_BADLY.has(state) || state === "up_for_retry";
  return readJob(mapIndex, ["luma_request", "luma_task_id", ...(failed ? ["luma_error", "return_value"] : [])]);
}

// -- cards ---------------------------------------------------------------------------------------------------------

const observer = new IntersectionObserver(
  (changes) => changes.forEach(({ target, isIntersecting }) => onView(target, isIntersecting)),
  { rootMargin: "300px 0px" }, // a row ahead
);

function addEntry(mapIndex) {
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(`.${name}`);
  const entry = { mapIndex, card, inView: false, plays: false, version: null, job: null, trouble: "" };
  for (const name of ["modified", "original", "note", "open", "state", "log", "prompt"]) entry[name] = part(name);
  entry.open.href = pageOf("result", task.taskId, mapIndex);
  leavingTab(Object.assign(entry.log, { href: airflowPage(mapIndex) }));
  entry.log.setAttribute("aria-label", `Log of ${mapIndex}`);
  for (const link of [entry.open, entry.log]) link.tabIndex = -1;
  for (const video of [entry.modified, entry.original]) video.addEventListener("error", () => showEntry(entry));
  listen(entry);
  entries.set(mapIndex, entry);
  card.entry = entry;
  byId("grid").append(card);
  observer.observe(card);
  return entry;
}

function onView(card, isInView) {
  const { entry } = card;
  entry.inView = isInView;
  if (isInView && entry.isStale) read(entry);
  showVideos(entry);
}

function showEntry(entry) {
  const { card, instance, job } = entry;
  card.dataset.group = groupOf(instance);
  setText(entry.open, instance.map_index >= 0 ? labelOf(instance, nameOf(job ?? NO_JOB)) : task.taskId);
  setText(entry.state, stateWords(instance));
  setText(entry.prompt, job?.prompt || (webAddress(job?.source) ? "" : withoutSecrets(job?.source)));
  entry.prompt.title = entry.prompt.textContent;
  showVideos(entry);
  setText(entry.note, noteOf(entry));
}

const files = new Set();
const fileOf = ({ source }) => withoutSecrets(source).replace(/^.*\//s, "");

/** Once there are two different files, name the cards after their files. */
function learnFile(job) {
  const before = files.size;
  if (fileOf(job)) files.add(fileOf(job));
  if (before < 2 && files.size === 2) entries.forEach(showEntry);
}

/** The name of a card for which Airflow has none: its file, or the first words of its prompt. */
function nameOf(job) {
  const words = job.prompt.trim().split(/\s+/);
  return files.size > 1 && fileOf(job) ? fileOf(job) : words.slice(0, 6).join(" ").slice(0, 60) + (words.length > 6 ? " …" : "");
}

function noteOf({ instance, job, trouble, modified }) {
  const { state } = instance;
  if (trouble) return trouble;
  if (!job && (isOver(instance) || groupOf(instance) === "busy")) return ""; // not read yet
  if (job?.urls.length && isOver(instance)) return modified.error ? whyNotPlayed(job, job.urls[0]) : "";
  if (!ENDED_BADLY.has(state) && state !== "up_for_retry") return absence(instance, job ?? NO_JOB);
  const paid = job && isFetchable(job) ? "Paid for: open the result to see how to fetch the video. " : "";
  return job ? paid + errorWords(instance, job) : "";
}

/** Load a card's videos only while it is in view: a hundred loaded videos would be too many for a browser. */
function showVideos(entry) {
  const { card, inView, job, modified, original } = entry;
  setVideo(modified, inView ? (job?.urls[0] ?? "") : "");
  setVideo(original, inView ? (job?.original ?? "") : "");
  card.dataset.shows = modified.dataset.url && !modified.error ? "both" : "original";
  if (entry.plays) start(entry); // the keyboard focus reached it before it was in view
}

function setVideo(video, url) {
  video.hidden = !url || Boolean(video.error);
  if ((video.dataset.url ?? "") === url) return;
  video.dataset.url = url;
  video.hidden = !url;
  video.preload = "metadata";
  if (url) video.src = `${url.replace(/#.*$/, "")}#t=0.01`; // some browsers show no picture at the very start
  else {
    video.removeAttribute("src");
    video.load();
  }
}

// -- playing -------------------------------------------------------------------------------------------------------

function listen(entry) {
  const { card } = entry;
  const screen = card.querySelector(".screen");
  screen.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && play(entry, true));
  screen.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && play(entry, false));
  card.addEventListener("focusin", () => play(entry, true));
  card.addEventListener("focusout", () => play(entry, false));
  screen.addEventListener("click", (event) => {
    if (event.pointerType === "touch") play(entry, !entry.plays); // touch has no hover
    else entry.open.click();
  });
}

function play(entry, on) {
  entry.plays = on;
  for (const video of [entry.modified, entry.original]) {
    video.pause();
    video.currentTime = 0;
  }
  if (on) start(entry);
}

function start({ modified, original }) {
  for (const video of [modified, original]) {
    // A video that cannot be played fires an error event; a video that is paused right away rejects the promise.
    if (video.dataset.url && !video.error && video.paused) video.play().catch(() => {});
  }
}

// -- moving by keyboard --------------------------------------------------------------------------------------------

const visible = () => [...byId("grid").children].filter((card) => !card.hidden);
let current = null;

/** Make only one card reachable by the Tab key: there may be hundreds. */
function setCurrent(card) {
  for (const link of current?.querySelectorAll("a") ?? []) link.tabIndex = -1;
  for (const link of card?.querySelectorAll("a") ?? []) link.tabIndex = 0;
  current = card;
}

byId("grid").addEventListener("focusin", (event) => setCurrent(event.target.closest(".card")));
byId("grid").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const cards = visible();
  const at = cards.indexOf(event.target.closest(".card"));
  const columns = getComputedStyle(byId("grid")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns };
  const place = { ...steps, Home: 0, End: cards.length - 1 }[event.key];
  if (place === undefined) return;
  event.preventDefault();
  const to = cards[place];
  if (!to) return;
  to.querySelector(".open").focus({ preventScroll: true });
  to.scrollIntoView({ block: "nearest" });
});

// -- filters and overview ------------------------------------------------------------------------------------------

let shownGroup = Object.hasOwn(GROUPS, location.hash.slice(1)) ? location.hash.slice(1) : "all";
const buttons = Object.entries(GROUPS).map(([group, name]) => {
  const button = element("button", name, { type: "button" });
  button.dataset.group = group;
  button.addEventListener("click", () => {
    shownGroup = group;
    history.replaceState(null, "", `#${group}`);
    showOverview(entries.size);
  });
  return button;
});
byId("filters").append(...buttons);

function showOverview(total) {
  if (isRefused) return;
  const counts = { all: entries.size };
  for (const { instance } of entries.values()) counts[groupOf(instance)] = (counts[groupOf(instance)] ?? 0) + 1;
  for (const button of buttons) {
    const { group } = button.dataset;
    setText(button, `${GROUPS[group]} ${counts[group] ?? 0}`);
    button.setAttribute("aria-pressed", String(group === shownGroup));
    button.hidden = !counts[group] && group !== shownGroup && group !== "all";
  }
  for (const { card, instance } of entries.values()) card.hidden = shownGroup !== "all" && groupOf(instance) !== shownGroup;
  if (!current || current.hidden) setCurrent(visible()[0] ?? null);
  byId("content").hidden = false;
  byId("bar").hidden = false;
  showProblem(null);
  const none = entries.size && !counts[shownGroup] ? `None ${GROUPS[shownGroup].toLowerCase()}.` : "";
  showEmpty(none);
  showCounts(counts, total);
}

function showCounts({ good = 0, busy = 0, waiting = 0, bad = 0 }, total) {
  const goesOn = busy + waiting > 0;
  const words = bad ? `${good} of ${total} finished, ${bad} failed` : `${good} of ${total} finished`;
  showBadge(goesOn ? "busy" : bad ? "bad" : "good", words, "Luma gallery");
}

function showEmpty(words) {
  byId("empty").hidden = !words;
  setText(byId("empty"), words);
}

// -- following the run ---------------------------------------------------------------------------------------------

/** Load and show everything; return whether anything may still change. */
async function refresh() {
  const count = await loadInstances();
  if (count) return [...entries.values()].some(({ instance }) => !isOver(instance));
  const run = await ask(runPath);
  if (run === null) throw refusals[404]();
  const isEnded = run.state === "success" || run.state === "failed";
  byId("content").hidden = false;
  showBadge(isEnded ? "" : "busy", isEnded ? "nothing here" : "not started", "Luma gallery");
  showEmpty(isEnded ? "This task had nothing to do in this run." : "The run has not reached this task yet.");
  return !isEnded;
}

const becomesVisible = () =>
  new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

let isRefused = false;

function refuse({ message, problem }) {
  isRefused = true;
  byId("content").hidden = true;
  showBadge("bad", message, "Luma gallery");
  showProblem(problem);
}

async function follow() {
  let goesOn = true;
  try {
    goesOn = await refresh();
  } catch (error) {
    if (error instanceof Refused) return refuse(error);
    showTrouble(error, "Luma gallery", ["Open the task in Airflow", byId("task-link").href]);
  }
  if (isRefused || !goesOn) return;
  await new Promise((resolve) => setTimeout(resolve, POLL_MS * Math.max(1, entries.size / PAGE_SIZE / 2)));
  if (document.hidden) await becomesVisible();
  follow();
}

byId("task-link").href = `${airflowPage()}/mapped`;
byId("task-link").textContent = [task.dagId, task.runId, task.taskId].join(" / ");
leavingTab(byId("task-link"));
follow();

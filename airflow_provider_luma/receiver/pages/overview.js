// SPDX-License-Identifier: Apache-2.0
// The overview of the Luma jobs of all DAGs: their task instances, found by their operators. One list query finds the
// newest, and two find those that may need a hand; XComs are read only for these, and for rows in view. Each request
// costs the API server about 30 ms, so the page makes few.
import {
  ENDED_BADLY, FETCH, Refused, airflowPage, ask, byId, element, errorWords, expiry, isFetchable, isOver, isRenewable, jobIn, labelOf,
  leavingTab, pageOf, placeOf, priceWords, readJobIn, readXComs, refusals, regionOf, root, setText, showBadge, showProblem, showTrouble, signIn,
  stateWords, text, troubleWords, webAddress, withoutSecrets,
} from "./common.js";

const TITLE = "Luma jobs";
const DAY_MS = 86400000;
const DAYS = 14;
const PAGE_SIZE = 50;
const CHECKED = 20; // candidates at a time, of each kind that may need a hand
const BATCH = 10; // details of so many jobs are read at a time, and one query looks for all their downloads
const RETRY_MS = 4000;
const OPERATORS = ["LumaModifyOperator", "_LumaModifyDecoratedOperator", "BatchModifyOperator", "LumaTaskSensor"];
const FETCHED = "luma_fetched_"; // the key of the XCom of a download begins with this, and ends with the job's id

// Tasks that never ran had no job. Airflow takes their missing start for now, so they would be listed for ever.
const GROUPS = {
  good: ["Finished", ["success"]],
  busy: ["In progress", ["running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule", "restarting"]],
  bad: ["Failed", ["failed"]],
  skipped: ["Skipped", ["skipped"]],
};
const groupOf = ({ state }) => Object.keys(GROUPS).find((group) => GROUPS[group][1].includes(state)) ?? "";

const NO_ACCESS = "no access";
refusals[401] = () => signIn("Airflow shows jobs only to users who may see their DAGs.");
refusals[403] = () =>
  new Refused(NO_ACCESS, {
    title: "You may not see any jobs", words: "Ask for access to task instances and XComs.", link: ["Go to Airflow", `${root}/`],
  });

// -- the filter ----------------------------------------------------------------------------------------------------

// In Airflow's UI this page is in a frame, and the address that a user can copy is that of the UI.
const windows = new Set([window, window.top]);

function readFilter() {
  const query = new URLSearchParams(location.search || window.top.location.search);
  const group = query.get("state") ?? "";
  // The names of subclasses, of which this page cannot know.
  return { dag: query.get("dag_id") ?? "", group: Object.hasOwn(GROUPS, group) ? group : "", operators: query.getAll("operator") };
}

function writeFilter({ dag, group, operators }) {
  const parts = [["dag_id", dag], ["state", group], ...operators.map((name) => ["operator", name])].filter(([, value]) => value);
  const search = parts.length ? `?${new URLSearchParams(parts)}` : "";
  for (const { history, location } of windows) history.replaceState(history.state, "", location.pathname + search);
}

// -- lists of task instances ---------------------------------------------------------------------------------------

const before = (now, days) => new Date(now - days * DAY_MS).toISOString();

/** Return a page of the task instances that fulfil the conditions; a DAG that a user may not see has none. */
async function list({ dag, operators }, conditions, limit, offset = 0) {
  const of = [...OPERATORS, ...operators].map((name) => ["operator", name]);
  const query = new URLSearchParams([...of, ...conditions, ["limit", limit], ["offset", offset]]);
  const nothing = { task_instances: [], total_entries: 0 };
  try {
    const path = `/api/v2/dags/${dag ? encodeURIComponent(dag) : "~"}/dagRuns/~/taskInstances`;
    return (await ask(`${path}?${query}`)) ?? nothing;
  } catch (error) {
    if (dag && error instanceof Refused && error.message === NO_ACCESS) return nothing;
    throw error;
  }
}

/**
 * The lists of jobs that may need a hand, most urgent first. Results of kie.ai expire after 14 days; other results can
 * be renewed.
 */
const CANDIDATES = [
  (now) => [["state", "failed"], ["start_date_gte", before(now, DAYS)], ["order_by", "-start_date"]],
  (now) => [["state", "success"], ["end_date_gte", before(now, DAYS)], ["end_date_lte", before(now, DAYS - 1)], ["order_by", "end_date"]],
  (now) => [["state", "success"], ["end_date_gte", before(now, DAYS + 1)], ["end_date_lte", before(now, DAYS)], ["order_by", "-end_date"]],
];
const EXPIRED = 2;

// -- details of a job ----------------------------------------------------------------------------------------------

const known = new Map();

/** Read something about a task instance once. */
function once(instance, what, readIt) {
  const name = [instance.id, instance.state, instance.try_number, what].join();
  if (!known.has(name)) known.set(name, readIt().catch((error) => (known.delete(name), Promise.reject(error))));
  return known.get(name);
}

const xcom = (instance, key) => once(instance, key, () => readXComs(placeOf(instance), [key]));

/** The prompt as Airflow lists it: only in the newest runs, not if it is long, and not before the task has computed it. */
function listedPrompt({ rendered_fields: fields }) {
  const prompt = text(fields?.prompt);
  return /^(Truncated\. |DYNAMIC \()/.test(prompt) ? "" : prompt;
}

// Where most tasks say how they ended. A killed one has pushed no error.
const ENDS = { success: "return_value", failed: "luma_error" };

/** Return what a task instance has pushed about its job: its request only if a row shows more of it than the prompt. */
async function readJobOf(instance, isRow) {
  const { state } = instance;
  const end = Object.hasOwn(ENDS, state) ? await xcom(instance, ENDS[state]) : {};
  const [job, prompt] = [jobIn(end), listedPrompt(instance)];
  if (state !== "success" && !job.id) return once(instance, "all", () => readJobIn(state, placeOf(instance)));
  const needsPrice = isRow && (state === "failed" || isRenewable(job)); // an error does not name the service
  const needsWords = isRow ? !prompt : state === "failed" && !text(job.error.remedy);
  return needsPrice || needsWords ? jobIn({ ...end, ...(await xcom(instance, "luma_request")) }) : { ...job, prompt };
}

const fetched = new Map(); // by the key of the XCom of a download
let takesPrefixes = true;

const downloads = (query) => ask(`/api/v2/dags/~/dagRuns/~/taskInstances/~/xcomEntries?${new URLSearchParams(query)}`);

/** Find out whether the results of these jobs were fetched: by one query, if Airflow can (3.3 can, 3.1 cannot). */
async function lookForDownloads(ids) {
  const keys = ids.filter((id) => /^[\w.-]{1,256}$/.test(id)).map((id) => FETCHED + id).filter((key) => !fetched.has(key));
  if (!keys.length) return;
  const found = takesPrefixes ? await downloads({ xcom_key_prefix_pattern: keys.join("|"), limit: 100 }) : null;
  const present = (found?.xcom_entries ?? []).map((entry) => entry.key);
  takesPrefixes &&= present.every((key) => text(key).startsWith(FETCHED)); // an older Airflow returns any XComs
  const isComplete = found !== null && found.total_entries === present.length;
  const isThere = async (key) => (await downloads({ xcom_key: key, limit: 1 }))?.total_entries > 0;
  await Promise.all(keys.map(async (key) => fetched.set(key, present.includes(key) || (!isComplete && (await isThere(key))))));
}

const waiting = new Set();
let isReading = false;

/** Read the details of an entry after those that are more urgent, unless the entry has left the view before. */
function read(entry) {
  waiting.add(entry);
  if (!isReading) readWaiting();
}

async function readWaiting() {
  isReading = true;
  try {
    await null; // more entries are added at the same time
    while (waiting.size) {
      for (const entry of waiting) if (entry.view !== shown || !entry.isWanted()) waiting.delete(entry);
      const batch = [...waiting].sort((one, other) => one.urgency - other.urgency).slice(0, BATCH);
      for (const entry of batch) waiting.delete(entry);
      await readBatch(batch);
    }
  } finally {
    isReading = false;
  }
}

async function readBatch(entries) {
  const jobs = await Promise.all(
    entries.map((entry) => readJobOf(entry.instance, entry.isRow).catch((error) => failToRead(entry, error))),
  );
  const read = entries.map((entry, i) => ({ entry, job: jobs[i] })).filter(({ job }) => job);
  try {
    await lookForDownloads(read.filter(({ entry }) => isOver(entry.instance)).map(({ job }) => job.id));
  } catch (error) {
    return read.forEach(({ entry }) => failToRead(entry, error));
  }
  for (const { entry, job } of read) {
    if (entry.view === shown) entry.onDetails({ job, isFetched: fetched.get(FETCHED + job.id) ?? false });
  }
}

/** Try again, unless the user may not see the XComs of this DAG, or is not signed in. */
function failToRead(entry, error) {
  if (entry.view !== shown) return;
  if (error instanceof Refused && error.message === NO_ACCESS) return entry.onNoAccess();
  if (error instanceof Refused) return refuse(error);
  entry.onTrouble(troubleWords(error));
  setTimeout(read, RETRY_MS, entry);
}

// -- rows ----------------------------------------------------------------------------------------------------------

const observer = new IntersectionObserver(
  (changes) => changes.forEach(({ target: { entry }, isIntersecting }) => {
    entry.isInView = isIntersecting;
    if (isIntersecting) read(entry);
  }),
  { rootMargin: "200px 0px" },
);

/** Return a table row with these cells, and its parts. */
function newRow(instance, cells) {
  const row = byId("row").content.firstElementChild.cloneNode(true);
  const part = (name) => row.querySelector(`[data-part="${name}"]`);
  for (const cell of row.querySelectorAll("td")) if (!cells.includes(cell.dataset.part)) cell.remove();
  const { dag_id: dagId, dag_run_id: runId, task_id: taskId, map_index: mapIndex } = instance;
  const [open, log, time] = [".open", ".log", "time"].map((selector) => row.querySelector(selector));
  const [region, place] = [new URLSearchParams(regionOf(instance)).toString(), { dagId, runId }];
  open.href = pageOf("result", taskId, mapIndex, place) + (region && `&${region}`);
  open.textContent = mapIndex >= 0 ? `${taskId} [${labelOf(instance)}]` : taskId;
  log.href = airflowPage(mapIndex, taskId, place) + (region && `?${region}`);
  log.setAttribute("aria-label", `Log of ${open.textContent} in ${dagId}, ${runId}`);
  row.querySelector(".place").textContent = `${dagId} / ${runId}`;
  [open, log].forEach(leavingTab);
  const started = Date.parse(instance.start_date);
  if (!Number.isNaN(started)) {
    time.dateTime = instance.start_date;
    time.title = new Date(started).toLocaleString();
    time.textContent = `${span(Date.now() - started)} ago`;
  }
  return { row, part };
}

/** Read the details of a row's job once the row is in view. */
function readInView(row, view, instance, onDetails) {
  const entry = { view, instance, isRow: true, urgency: 1, isInView: false, isWanted: () => entry.isInView };
  const end = () => {
    entry.isInView = false;
    observer.unobserve(row);
  };
  entry.onTrouble = (words) => showPrompt(row, words);
  entry.onNoAccess = () => {
    end();
    showPrompt(row, "You may not see the XComs of this DAG");
  };
  entry.onDetails = (details) => {
    end();
    onDetails(details);
  };
  row.entry = entry;
  observer.observe(row);
}

function addJob(view, instance) {
  const { row, part } = newRow(instance, ["state", "age", "prompt", "cost", "expires", "fetched"]);
  row.dataset.group = groupOf(instance);
  row.querySelector(".state").textContent = stateWords(instance);
  showPrompt(row, listedPrompt(instance));
  byId("jobs").querySelector("tbody").append(row);
  readInView(row, view, instance, ({ job, isFetched }) => {
    const hasResult = job.urls.length > 0 || (ENDED_BADLY.has(instance.state) && isFetchable(job));
    showPrompt(row, job.prompt || (webAddress(job.source) ? "" : withoutSecrets(job.source)));
    row.querySelector(".state").textContent = stateWords(instance, job.urls.length > 0);
    part("cost").textContent = priceWords(job);
    part("fetched").textContent = isFetched ? "yes" : hasResult ? "no" : "";
    if (job.urls.length) showExpiry(part("expires"), job);
  });
}

function showPrompt(row, words) {
  const prompt = row.querySelector(".prompt");
  setText(prompt, words);
  prompt.title = words;
}

function showExpiry(cell, job) {
  const ms = expiry(job) - Date.now();
  if (Number.isNaN(ms)) return;
  if (isRenewable(job)) return Object.assign(cell, { textContent: "renewable", title: "A download task gets a new address" });
  cell.textContent = ms > 0 ? `in ${span(ms)}` : "expired";
  cell.title = new Date(expiry(job)).toLocaleString();
}

/** A time in its largest unit. */
function span(ms) {
  const minutes = Math.floor(ms / 60000);
  if (minutes < 1) return "under a minute";
  if (minutes < 60) return `${minutes} min`;
  return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} days`;
}

// -- jobs that need a hand -----------------------------------------------------------------------------------------

/** Return how urgent a job is (the lower, the more), and in sentences what to do; null if it needs no hand. */
function needOf(instance, { job, isFetched }) {
  const [failed, remedy, ms] = [instance.state === "failed", text(job.error.remedy), expiry(job) - Date.now()];
  if (failed && job.error.type === "LumaSubmissionUnknownError")
    return [0, "It is unknown whether Luma accepted this job", errorWords(instance, job), remedy];
  if (isFetched) return null;
  if (failed) return isFetchable(job) ? [1, "Paid for, but its video was not fetched", remedy || job.recovery || FETCH] : null;
  if (!job.urls.length || isRenewable(job) || !(ms < DAY_MS)) return null;
  if (ms > 0) return [2, `Expires in ${span(ms)}, and no download task has fetched it`, "Open it to download the video now"];
  return [3, `Expired ${span(-ms)} ago, and no download task had fetched it`, "Clearing it submits another, separately billed, job"];
}

/** Check the next candidates, and show those that need a hand. */
async function checkHands(view) {
  byId("more-hands").hidden = true;
  view.isListing = true;
  for (const [kind, conditions] of CANDIDATES.entries()) {
    if (kind === EXPIRED && view.left[kind - 1] > 0) continue; // results that will expire come first
    const { task_instances: page, total_entries: total } = await list(view.filter, conditions(view.now), CHECKED, view.checked[kind]);
    if (view !== shown) return;
    view.checked[kind] += page.length;
    view.left[kind] = page.length ? total - view.checked[kind] : 0;
    for (const instance of page) if (!view.candidateIds.has(instance.id)) check(view, instance, kind ? 2 : 0);
  }
  view.isListing = false;
  showHands(view);
}

/** Find out whether a job needs a hand. */
function check(view, instance, urgency) {
  view.candidateIds.add(instance.id);
  view.unchecked += 1;
  const order = view.candidateIds.size;
  const end = () => {
    view.unchecked -= 1;
    showHands(view);
  };
  read({
    view, instance, urgency, isRow: false, isWanted: () => true,
    onTrouble: (words) => setText(byId("hands-note"), `${words}; trying again`),
    onNoAccess: () => {
      view.unreadable += 1;
      end();
    },
    onDetails: (details) => {
      const need = needOf(instance, details);
      if (need) addHand(view, instance, details.job, order, need);
      end();
    },
  });
}

const asSentence = (words) => `${words[0].toUpperCase()}${words.slice(1).replace(/[.\s]+$/, "")}.`;

/** Show a job among those that are as urgent, in the order of the lists. */
function addHand(view, instance, job, order, [urgency, ...sentences]) {
  const { row, part } = newRow(instance, ["advice", "age", "prompt"]);
  part("advice").textContent = sentences.filter(Boolean).map(asSentence).join(" ");
  showPrompt(row, job.prompt || listedPrompt(instance));
  if (!job.prompt) readInView(row, view, instance, ({ job: { prompt } }) => showPrompt(row, prompt));
  view.hands.push({ urgency, order, row });
  view.hands.sort((one, other) => one.urgency - other.urgency || one.order - other.order);
  const next = view.hands[view.hands.findIndex((hand) => hand.row === row) + 1];
  byId("hands").querySelector("tbody").insertBefore(row, next?.row ?? null);
}

const NEEDS = "outcomes that are unknown, videos that are paid for but not fetched, and results that expire within a day";

function showHands(view) {
  const { length } = view.hands;
  byId("hands").hidden = !length;
  const isChecking = view.isListing || view.unchecked > 0;
  const isAll = view.left.every((count) => count <= 0);
  byId("more-hands").hidden = isChecking || isAll;
  const found = `${length || "None"}${isAll ? "" : ` of the ${view.candidateIds.size - view.unreadable} jobs checked so far`}`;
  const unreadable = view.unreadable ? ` Not checked, since you may not see their XComs: ${view.unreadable}.` : "";
  setText(byId("hands-note"), isChecking ? "Checking …" : `${found}: ${NEEDS}.${unreadable}`);
  if (view.total !== null) showTotal(view);
}

// -- all jobs ------------------------------------------------------------------------------------------------------

async function loadJobs(view) {
  byId("more-jobs").hidden = true;
  const groups = Object.keys(GROUPS).filter((group) => [group, ""].includes(view.filter.group));
  const states = groups.flatMap((group) => GROUPS[group][1]);
  const conditions = [...states.map((state) => ["state", state]), ["start_date_gte", before(view.now, DAYS)], ["order_by", "-start_date"]];
  const page = await list(view.filter, conditions, PAGE_SIZE, view.asked);
  if (view !== shown) return;
  view.asked += page.task_instances.length;
  view.total = page.total_entries;
  for (const instance of page.task_instances) {
    if (view.ids.has(instance.id)) continue; // a job that has started since then has moved the pages
    view.ids.add(instance.id);
    addJob(view, instance);
    offerDag(instance.dag_id);
  }
  byId("content").hidden = false;
  byId("jobs").hidden = !view.total;
  byId("more-jobs").hidden = !page.task_instances.length || view.asked >= view.total;
  byId("empty").hidden = view.total > 0;
  setText(byId("empty"), view.total ? "" : emptyWords(view.filter));
  showTotal(view);
}

function showTotal({ total, hands }) {
  const jobs = `${total.toLocaleString()} ${total === 1 ? "job" : "jobs"}`;
  showBadge(hands.length ? "bad" : "", hands.length ? `${jobs}, ${hands.length} to look at` : jobs, TITLE);
}

function emptyWords({ dag, group }) {
  if (dag || group) return `No job of the last ${DAYS} days matches. Choose another DAG or state, or show all.`;
  return `No job has started in the last ${DAYS} days in a DAG that you may see. Run a DAG with a LumaModifyOperator, @task.luma_modify or a LumaTaskSensor, and its jobs appear here. Tasks of a subclass appear with ?operator= and its name in the address of this page.`;
}

const dags = new Set();

function offerDag(dagId) {
  if (dags.has(dagId)) return;
  dags.add(dagId);
  byId("dags").append(element("option", "", { value: dagId }));
}

// -- loading -------------------------------------------------------------------------------------------------------

let shown = null;

function begin(filter) {
  for (const cache of [known, fetched]) cache.clear(); // a result may have been fetched since
  shown = {
    filter, now: Date.now(), asked: 0, total: null, ids: new Set(), checked: [0, 0, 0], left: [1, 1, 1], candidateIds: new Set(), isListing: true, unchecked: 0,
    unreadable: 0, hands: [],
  };
  for (const id of ["jobs", "hands"]) byId(id).querySelector("tbody").replaceChildren();
  byId("hands").hidden = true;
  setText(byId("hands-note"), "Checking …");
  byId("dag").value = filter.dag;
  byId("group").value = filter.group;
  byId("clear").hidden = !filter.dag && !filter.group;
  attempt(loadJobs, shown);
  attempt(checkHands, shown);
}

/** Load a part of a view, until Airflow answers or refuses. */
async function attempt(load, view) {
  if (view !== shown) return;
  try {
    await load(view);
    if (view === shown) showProblem(null);
  } catch (error) {
    if (view !== shown) return;
    if (error instanceof Refused) return refuse(error);
    showTrouble(error, TITLE, ["Go to Airflow", `${root}/`]);
    setTimeout(attempt, RETRY_MS, load, view);
  }
}

function refuse({ message, problem }) {
  shown = null;
  byId("content").hidden = true;
  showBadge("bad", message, TITLE);
  showProblem(problem);
}

function choose(changes) {
  const filter = { ...readFilter(), ...changes };
  writeFilter(filter);
  begin(filter);
}

byId("group").append(
  element("option", "All", { value: "" }),
  ...Object.entries(GROUPS).map(([value, [name]]) => element("option", name, { value })),
);
byId("dag").addEventListener("change", () => choose({ dag: byId("dag").value.trim() }));
byId("group").addEventListener("change", () => choose({ group: byId("group").value }));
byId("clear").addEventListener("click", () => {
  choose({ dag: "", group: "" });
  byId("dag").focus(); // the button is gone
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("more-jobs").addEventListener("click", () => attempt(loadJobs, shown));
byId("more-hands").addEventListener("click", () => attempt(checkHands, shown));
begin(readFilter());

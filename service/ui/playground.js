// Connects the page's parts: it makes a request of the text and the controls, and shows the answer.
// At most one request is under way. A newer request cancels the older one, and the page never shows
// an older answer after a newer one.

import { Offline, Problem, asCurl, fetchInfo, recommend } from "./api.js";
import {
  bodyOf,
  chooseEffort,
  countFilters,
  fromAddress,
  readControls,
  readEffort,
  toAddress,
  writeControls,
} from "./controls.js";
import { curve } from "./curve.js";
import { formatCount, formatMs } from "./format.js";
import {
  byId,
  drawAbout,
  drawEfforts,
  drawExplanation,
  drawLabels,
  drawTiming,
  el,
} from "./view.js";

// The three times are choices. A pause in typing starts a request: a shorter one would ask for half
// a word. A screen reader speaks after a longer pause. Retries slow down, so that many open pages do
// not hold down a service that is coming back.
const TYPING_MS = 120;
const SPEAK_MS = 800;
const RETRY_MS = [2000, 4000, 8000, 15000];
const KEY = "astrolabe-api-key";

let info = null; // the answer of GET /v1/info
let turn = 0; // number of the latest request
let pendingRequest = null; // its AbortController
let typingTimer = 0;
let speechTimer = 0;
let retryTimer = 0;
let failures = 0;
let searchMs = null;

const query = byId("query");
const key = () => sessionStorage.getItem(KEY) || "";

// ---- the model ----

async function open() {
  const effort = readEffort() ?? fromAddress().effort;
  try {
    info = await fetchInfo(key(), byId("model").value || fromAddress().model);
  } catch (error) {
    showFailure(error, open);
    return;
  }
  showReady();
  describe();
  chooseEffort(effort);
  drawCurve();
  ask();
}

function describe() {
  byId("loading").hidden = true;
  byId("key-form").hidden = true;
  document.title = `${info.name} · Astrolabe`;
  byId("summary").textContent = `${info.name} · ${formatCount(info.n_labels)} labels`;
  byId("k").max = String(info.limits.max_k);
  byId("k").placeholder = String(info.default_k);
  byId("item-row").hidden = !info.item_filter;
  drawModels();
  drawEfforts(info);
  drawAbout(info);
}

/** List the models. With one model there is no list, and requests do not name it. */
function drawModels() {
  const several = info.models.length > 1;
  byId("model-row").hidden = !several;
  const names = several ? info.models : [];
  byId("model").replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (several) byId("model").value = info.name;
}

function drawCurve() {
  const points = info.operating_points;
  byId("curve").replaceChildren(points.length > 1 ? curve(points, readEffort(), searchMs) : "");
}

// ---- requests ----

async function ask() {
  if (!info) return; // open() asks once it knows the model
  clearTimeout(typingTimer);
  clearTimeout(retryTimer);
  pendingRequest?.abort();
  const mine = ++turn;
  const values = readControls();
  toAddress(values);
  const filters = countFilters(values);
  byId("filter-count").textContent = filters ? String(filters) : "";
  byId("copy").disabled = !values.query?.trim();
  byId("curl").hidden = true;
  if (!values.query?.trim()) {
    showNothing();
    return;
  }
  pendingRequest = new AbortController();
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const answer = await recommend(bodyOf(values), key(), pendingRequest.signal);
    if (mine === turn) showAnswer(answer);
  } catch (error) {
    if (mine === turn && error.name !== "AbortError") showFailure(error, ask);
  } finally {
    if (mine === turn) byId("answer").setAttribute("aria-busy", "false");
  }
}

const again = () => (info ? ask() : open());

function askSoon() {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(ask, TYPING_MS);
}

// ---- answers ----

function showAnswer({ content, stages, tripMs }) {
  showReady();
  const [result] = content.results;
  drawLabels(result.labels, content.score_kind);
  drawTiming(stages, tripMs);
  searchMs = stages?.stages.find((stage) => stage.name === "search").ms || null;
  drawCurve();
  drawExplanation(result.explanation);
  const n = result.labels.length;
  byId("empty").hidden = n > 0;
  byId("empty").textContent = "No label fits: lower the lowest score or loosen the filters.";
  byId("outcome").textContent = `${n} at effort ${content.effort}${planOf(result.plan)}`;
  const flags = flagsOf(content, result);
  byId("flags").textContent = flags.join(" ");
  byId("flags").hidden = flags.length === 0;
  speak(
    n
      ? `${n} labels in ${formatMs(tripMs)}. Best: ${result.labels[0].text ?? result.labels[0].id}.`
      : "No labels.",
  );
}

/** How the service searched the labels that pass the filters; empty without filters. */
function planOf(plan) {
  if (!plan) return "";
  const share = `${formatCount(plan.open)} of ${formatCount(plan.labels)} labels let through`;
  return plan.kind === "exact" ? `, all ${share} were scored` : `, ${share}`;
}

/** Sentences with what the reader of this answer should know. */
function flagsOf(content, result) {
  const flags = [];
  if (result.truncated)
    flags.push("The end of the text was cut off: it is longer than the encoder reads.");
  if (content.effort_asked)
    flags.push(
      `Under load, the service answered at ${content.effort} instead of ${content.effort_asked}.`,
    );
  if (result.plan?.unknown_ids)
    flags.push(`Of the ids in the filters, ${result.plan.unknown_ids} name no label.`);
  return flags;
}

function showNothing() {
  byId("answer").setAttribute("aria-busy", "false");
  if (info) showReady();
  drawLabels([], "");
  drawTiming(null, 0);
  drawExplanation(null);
  byId("copy").disabled = true;
  byId("outcome").textContent = "";
  byId("flags").hidden = true;
  byId("empty").textContent = "Type a text to see labels.";
  byId("empty").hidden = false;
}

function showFailure(error, retry) {
  if (!(error instanceof Offline || error instanceof Problem)) throw error;
  const offline = error instanceof Offline;
  setState(offline ? "offline" : "refused", offline ? "offline" : String(error.status));
  const parts = [sentence(error.message)];
  if (offline) parts.push(" Trying again every few seconds.");
  else if (error.retryAfterS) parts.push(` Try again in ${error.retryAfterS} s, with Enter.`);
  const box = byId("problem");
  box.replaceChildren(el("p", {}, ...parts));
  if (error.requestId)
    box.append(
      el("p", { class: "hint" }, `${error.code} · request `, el("code", {}, error.requestId)),
    );
  // Without a key, the field for the key says so.
  box.hidden = error.status === 401 && key() === "";
  byId("answer").classList.add("stale");
  if (error.status === 401) askForKey();
  if (offline) {
    retryTimer = setTimeout(retry, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
  }
}

/** A problem's detail as a sentence. A field's name at its start, as in `k: ...`, keeps its case. */
function sentence(detail) {
  const text = detail.replace(/^[a-z]+(?= )/, (word) => word[0].toUpperCase() + word.slice(1));
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function showReady() {
  failures = 0;
  byId("problem").hidden = true;
  byId("answer").classList.remove("stale");
  setState("ready", "ready");
}

function setState(name, words) {
  byId("state").dataset.state = name;
  byId("state").textContent = words;
}

/** Tell a screen reader after a pause in typing: an answer for each keystroke would be noise. */
function speak(words) {
  clearTimeout(speechTimer);
  speechTimer = setTimeout(() => (byId("spoken").textContent = words), SPEAK_MS);
}

function askForKey() {
  if (!byId("key-form").hidden && key() === "") return;
  byId("key-form").hidden = false;
  byId("key").value = "";
  byId("key").focus();
}

// ---- copying ----

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return false; // the user forbids it, or the origin is not secure
  }
  const before = button.textContent;
  button.textContent = "Copied";
  speak("Copied.");
  setTimeout(() => (button.textContent = before), 1200);
  return true;
}

async function copyCurl() {
  const box = byId("curl");
  box.value = asCurl(bodyOf(readControls()), key() !== "");
  if (await copy(box.value, byId("copy"))) return;
  box.hidden = false;
  box.select();
}

// ---- keys ----

function onQueryKey(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    again();
  } else if (event.key === "ArrowDown" && query.selectionEnd === query.value.length) {
    const first = byId("labels").querySelector("button");
    if (first) {
      event.preventDefault();
      first.focus();
    }
  }
}

function onLabelKey(event) {
  const buttons = [...byId("labels").querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  if (to < 0) query.focus();
  else buttons[Math.min(to, buttons.length - 1)].focus();
}

function onEscape(event) {
  if (event.key !== "Escape" || event.isComposing) return;
  query.value = "";
  query.focus();
  ask();
}

// ---- start ----

query.addEventListener("input", askSoon);
query.addEventListener("keydown", onQueryKey);
byId("labels").addEventListener("keydown", onLabelKey);
byId("labels").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) copy(button.dataset.id, button);
});
document.addEventListener("keydown", onEscape);
byId("controls").addEventListener("input", (event) => {
  if (event.target.id !== "model") askSoon(); // for another model, open() fetches its info first
});
byId("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("model").addEventListener("change", open);
byId("copy").addEventListener("click", copyCurl);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  open();
});
window.addEventListener("hashchange", () => {
  writeControls(fromAddress());
  if (info?.models.length > 1) open();
  else again();
});
window.addEventListener("online", again);

writeControls(fromAddress());
showNothing();
open();

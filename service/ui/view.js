// Draws the service's answers. It sets every text as a text node, so that nothing from the service
// or the user becomes markup.

import { formatCount, formatMs, formatTime, formatUs } from "./format.js";

const SHOWN_ITEMS = 5; // of a list in an explanation, before it folds; a choice

const SCORE_KINDS = {
  probability:
    "Scores are calibrated probabilities: of the labels scored 0.80, about 80 % are right. A full bar is 1.",
  cosine:
    "Scores are cosines between text and label, from -1 to 1; they rank, and are no probabilities. A full bar is 1.",
  logit:
    "Scores are raw logits without a fixed range; only their order has a meaning. Bars span the scores of this answer.",
};

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text nodes. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("aria-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const fixed = (digits) => (number) => number.toFixed(digits);

/** Draw the labels of one answer, each with its score as a bar. */
export function drawLabels(labels, scoreKind) {
  const width = barWidth(labels, scoreKind);
  byId("labels").replaceChildren(
    ...labels.map((label, i) => labelRow(label, i + 1, width(label.score))),
  );
  byId("scores").textContent = labels.length ? SCORE_KINDS[scoreKind] || "" : "";
}

function labelRow(label, rank, share) {
  const bar = el("span", { class: "fill" });
  bar.style.width = `${(100 * share).toFixed(2)}%`;
  const words = el(
    "span",
    { class: "words" },
    el("span", { class: "text" }, label.text ?? label.id),
  );
  if (label.metadata && Object.keys(label.metadata).length)
    words.append(metadataOf(label.metadata));
  words.append(
    el(
      "button",
      {
        class: "id",
        type: "button",
        title: "Copy this id",
        "aria-label": `Copy id ${label.id}`,
        data: { id: label.id },
      },
      label.id,
    ),
  );
  return el(
    "li",
    {},
    el("span", { class: "rank", "aria-hidden": "true" }, String(rank)),
    words,
    label.rule ? el("span", { class: "metadata" }, `rule: ${label.rule}`) : "",
    el("span", { class: "track", "aria-hidden": "true" }, bar),
    el("span", { class: "score" }, label.score.toFixed(4)),
  );
}

function metadataOf(metadata) {
  const pairs = Object.entries(metadata).map(([name, value]) =>
    el(
      "span",
      { class: "pair-of" },
      `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`,
    ),
  );
  return el("span", { class: "metadata" }, ...pairs);
}

function barWidth(labels, scoreKind) {
  const clip = (share) => Math.min(1, Math.max(0, share));
  if (scoreKind !== "logit") return clip;
  const scores = labels.map((label) => label.score);
  const low = Math.min(...scores);
  const span = Math.max(...scores) - low || 1;
  return (score) => 0.05 + 0.95 * clip((score - low) / span);
}

/** Draw the service's stage times as one bar with a legend, and the round trip beside it. */
export function drawTiming(timing, tripMs) {
  byId("timing").hidden = timing === null;
  if (timing === null) return;
  const segments = timing.stages.map((stage) => {
    const segment = el("span", { class: `segment ${stage.name}` });
    segment.style.flexGrow = String(stage.ms);
    return segment;
  });
  byId("bar").replaceChildren(...segments);
  byId("legend").replaceChildren(
    ...timing.stages.map((stage) =>
      el(
        "li",
        {},
        el("span", { class: `swatch ${stage.name}`, "aria-hidden": "true" }),
        el("span", {}, stage.name),
        el("b", {}, formatMs(stage.ms)),
      ),
    ),
  );
  byId("trip").replaceChildren(
    el("b", {}, formatMs(timing.totalMs)),
    timing.cached ? " in the service, from its cache, " : " in the service, ",
    el("b", {}, formatMs(tripMs)),
    " round trip",
  );
}

/** Draw the operating points as radio buttons, each with its measured figures. */
export function drawEfforts(info) {
  const row = (point) => {
    const radio = el("input", { type: "radio", name: "effort", value: point.name });
    if (point.name === info.default_effort) radio.dataset.default = "1";
    return el(
      "label",
      {},
      radio,
      el("span", { class: "name" }, point.name),
      figure("recall at 10", point.recall_at_10, fixed(3)),
      figure("precision at 1", point.p_at_1, fixed(1)),
      figure("search", point.search_us_p50, formatUs),
    );
  };
  const head = el(
    "div",
    { class: "head", "aria-hidden": "true" },
    ...["", "", "R@10", "P@1", "search"].map((name) => el("span", {}, name)),
  );
  byId("efforts").replaceChildren(head, ...info.operating_points.map(row));
  const [point] = info.operating_points;
  byId("measured").textContent = point
    ? `Measured when the bundle was sealed, on ${point.machine}. R@10 compares with exact search.`
    : "";
}

const figure = (what, value, format) =>
  el("span", { class: "figure" }, el("span", { class: "unseen" }, `, ${what} `), format(value));

/** Draw what GET /v1/info says of the bundle and the service. */
export function drawAbout(info) {
  const facts = [
    ["Name", info.name],
    ["Bundle", info.bundle_id ? code(info.bundle_id) : null],
    ["Sealed", info.created && formatTime(info.created)],
    ["Labels", info.n_labels && formatCount(info.n_labels)],
    ["Index", info.index_kind && `${info.index_kind}, ${info.dim} dimensions`],
    [
      "Encoder",
      info.encoder && `${info.encoder.variant} (carries ${info.encoder.available.join(", ")})`,
    ],
    [
      "Device",
      info.device && `${device(info.device)}, ${info.lanes} lanes`,
    ],
    ["Calibration", calibration(info.calibration)],
    [
      "Memory",
      info.memory &&
        `${formatCount(info.memory.n_rows)} training queries, ${info.memory.neighbours} neighbours`,
    ],
    [
      "Re-ranker",
      info.rerank &&
        `${formatCount(info.rerank.trees)} trees, ${info.rerank.features.length} features, ` +
          `first ${formatCount(info.rerank.depth)} labels`,
    ],
    ["Item filter", info.item_filter && `${formatCount(info.item_filter.n_items)} items`],
    [
      "Adaptive effort",
      info.adaptive_effort &&
        `ceiling ${info.adaptive_effort.ceiling}, ${info.adaptive_effort.steps_down} steps down`,
    ],
    ["Limits", info.limits && limits(info.limits)],
    ["Version", info.version],
  ];
  const shown = facts.filter(([, value]) => value !== null && value !== undefined);
  byId("facts").replaceChildren(
    ...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
  drawQuality(info.quality);
}

const code = (text) => el("code", {}, text);
/** Only with `auto` can the service run without a GPU: told to use one, it does not start without. */
const device = ({ requested, active }) =>
  requested === "auto" && active === "cpu"
    ? "cpu (auto found no GPU)"
    : `${active} (asked for ${requested})`;
const limits = (info) =>
  `${info.max_queries} texts, ${formatCount(info.max_text_chars)} characters, ${info.max_tokens} tokens, ${info.max_k} labels`;

function calibration(info) {
  if (!info) return null;
  if (info.ece_after === null || info.ece_after === undefined) return info.kind;
  return `${info.kind}, error ${info.ece_before.toFixed(3)} before, ${info.ece_after.toFixed(3)} after`;
}

const QUALITY = [
  ["P@1", "p1"],
  ["P@3", "p3"],
  ["P@5", "p5"],
  ["nDCG@5", "ndcg5"],
  ["PSP@1", "psp1"],
  ["PSP@3", "psp3"],
  ["PSP@5", "psp5"],
  ["R@10", "r10"],
  ["R@100", "r100"],
];

function drawQuality(quality) {
  const box = byId("quality");
  box.replaceChildren();
  if (!quality) return;
  const shown = QUALITY.filter(([, key]) => key in quality.metrics);
  box.append(
    el("h3", {}, `Quality at ${quality.effort}`),
    el(
      "dl",
      { class: "figures" },
      ...shown.map(([name, key]) =>
        el("div", {}, el("dt", {}, name), el("dd", {}, quality.metrics[key].toFixed(1))),
      ),
    ),
    el(
      "p",
      { class: "hint" },
      `In percent, on ${formatCount(quality.n_queries)} queries of the ${quality.split} split. PSP gives rare labels more weight.`,
    ),
  );
}

/** Draw an explanation, one line for each of its fields, whatever they are. */
export function drawExplanation(explanation) {
  byId("explained").hidden = explanation === null || explanation === undefined;
  const entries = Object.entries(explanation ?? {}).filter(([, value]) => value !== null);
  const line = ([name, value]) =>
    el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, lines(value)));
  byId("explanation").replaceChildren(el("dl", {}, ...entries.map(line)));
}

const lines = (value) =>
  Array.isArray(value) && value.some(isObject) ? items(value) : el("span", {}, flat(value));

/** A list of objects, one a line. The page folds away all but the first SHOWN_ITEMS. */
function items(values) {
  const list = (part) => el("ul", {}, ...part.map((item) => el("li", {}, flat(item))));
  if (values.length <= SHOWN_ITEMS) return list(values);
  const rest = values.slice(SHOWN_ITEMS);
  return el(
    "div",
    {},
    list(values.slice(0, SHOWN_ITEMS)),
    el("details", {}, el("summary", {}, `${rest.length} more`), list(rest)),
  );
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** A value on one line. */
function flat(value) {
  if (Array.isArray(value)) return value.map(flat).join(", ");
  if (!isObject(value)) return scalar(value);
  return Object.entries(value)
    .map(([name, item]) => `${name.replaceAll("_", " ")} ${flat(item)}`)
    .join(" · ");
}

const scalar = (value) =>
  typeof value === "number" && !Number.isInteger(value)
    ? String(Number(value.toPrecision(6)))
    : String(value);

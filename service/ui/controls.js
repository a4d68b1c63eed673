// The controls as values: read from the form, kept in the address, turned into a request body.

const TEXTS = ["k", "min_score", "item_id", "allow", "deny", "where", "model"];
const CHECKS = ["effort_strict", "raw", "metadata", "explain"];
// Room for 8,192 characters (the default max_text_chars) of nine each when escaped, and for filters;
// Firefox takes addresses of up to 1,048,576 characters (network.standard-url.max-length).
const MAX_LINK_CHARS = 100_000;

const field = (name) => document.getElementById(name);
const chosenEffort = () => document.querySelector("input[name=effort]:checked");

/** Name of the effort that is chosen. */
export const readEffort = () => chosenEffort()?.value;

/** Every control's value by name; empty ones are left out. */
export function readControls() {
  const values = { query: field("query").value };
  for (const name of TEXTS) values[name] = field(name).value.trim();
  for (const name of CHECKS) if (field(name).checked) values[name] = "1";
  const effort = chosenEffort();
  // the bundle's own effort goes without saying, so that a link outlives a change of it
  if (effort && !effort.dataset.default) values.effort = effort.value;
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));
}

/** Set every control; what is not named is emptied. */
export function writeControls(values) {
  for (const name of ["query", ...TEXTS]) field(name).value = values[name] ?? "";
  for (const name of CHECKS) field(name).checked = values[name] === "1";
  chooseEffort(values.effort);
  if (values.allow || values.deny || values.where) field("filters").open = true;
}

/** Choose an effort by name, the bundle's own where that is not among them. */
export function chooseEffort(name) {
  const radios = [...document.querySelectorAll("input[name=effort]")];
  const chosen =
    radios.find((radio) => radio.value === name) || radios.find((radio) => radio.dataset.default);
  if (chosen) chosen.checked = true;
}

/** The controls that the address holds after its ? and its #, where the latter wins; q is the text. */
export function fromAddress() {
  const parts = [location.search, location.hash].map((part) => part.slice(1));
  const named = Object.fromEntries(parts.flatMap((part) => [...new URLSearchParams(part)]));
  return { ...named, query: named.q };
}

/**
 * Keep the controls in the address after its #, which stays in the browser, without a step in the
 * history. A link that would be too long is left out: cut off, it would ask something else.
 */
export function toAddress({ query, ...others }) {
  const values = query === undefined ? others : { q: query, ...others };
  const link = new URLSearchParams(values).toString();
  const kept = link && link.length <= MAX_LINK_CHARS;
  history.replaceState(null, "", location.pathname + (kept ? `#${link}` : ""));
}

/** The body of POST /v1/recommend; what is empty is not sent. */
export function bodyOf(values) {
  const body = { query: values.query };
  if (values.k) body.k = Number(values.k);
  if (values.min_score) body.min_score = Number(values.min_score);
  for (const name of ["effort", "item_id", "model"]) if (values[name]) body[name] = values[name];
  if (values.effort_strict) body.effort_strict = true;
  if (values.raw) body.scores = "raw";
  if (values.explain) body.explain = true;
  if (values.metadata) body.include = ["text", "metadata"];
  for (const name of ["allow", "deny"]) {
    const ids = (values[name] || "").split(/[\s,]+/).filter(Boolean);
    if (ids.length) body[name] = ids;
  }
  const where = conditions(values.where || "");
  if (Object.keys(where).length) body.where = where;
  return body;
}

/** How many filters are in force. */
export const countFilters = (values) =>
  ["allow", "deny", "where"].filter((name) => values[name]).length;

/** Lines field=value as an object; a field that is given again collects its values in a list. */
function conditions(lines) {
  const where = {};
  for (const line of lines.split("\n")) {
    const at = line.indexOf("=");
    if (at < 1) continue;
    const name = line.slice(0, at).trim();
    const value = plain(line.slice(at + 1).trim());
    where[name] = Object.hasOwn(where, name) ? [where[name], value].flat() : value;
  }
  return where;
}

/** 3 is a number, true a boolean, "3" a text, and anything that is not JSON is a text too. */
function plain(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? text : value;
  } catch {
    return text;
  }
}

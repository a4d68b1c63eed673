// Reads the controls from the form, keeps them in the address, and makes a request body of them.

const TEXTS = ["k", "min_score", "diversity", "item_id", "allow", "deny", "where", "model"];
const CHECKS = ["effort_strict", "history", "raw", "metadata", "explain"];
// A text of 8,192 characters (the default max_text_chars) takes up to nine characters for each when
// escaped, 73,728 in all; the rest is for filters. Firefox takes addresses of up to 1,048,576
// characters (network.standard-url.max-length).
const MAX_LINK_CHARS = 100_000;

const field = (name) => document.getElementById(name);
const effortRadio = () => document.querySelector("input[name=effort]:checked");

/** The name of the effort whose button is checked, undefined where there is none. */
export const readEffort = () => effortRadio()?.value;

/** The values of all controls that are not empty, by name. */
export function readControls() {
  const values = { query: field("query").value };
  for (const name of TEXTS) values[name] = field(name).value.trim();
  for (const name of CHECKS) if (field(name).checked) values[name] = "1";
  const effort = effortRadio();
  // A link does not name the bundle's default effort, so that it follows a change of the default.
  if (effort && !effort.dataset.default) values.effort = effort.value;
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));
}

/** Set every control, and empty those that `values` does not name. */
export function writeControls(values) {
  for (const name of ["query", ...TEXTS]) field(name).value = values[name] ?? "";
  for (const name of CHECKS) field(name).checked = values[name] === "1";
  chooseEffort(values.effort);
  if (values.allow || values.deny || values.where) field("filters").open = true;
}

/** Check the button of the effort of that name, or of the bundle's default where it has none such. */
export function chooseEffort(name) {
  const radios = [...document.querySelectorAll("input[name=effort]")];
  const match =
    radios.find((radio) => radio.value === name) || radios.find((radio) => radio.dataset.default);
  if (match) match.checked = true;
}

/**
 * The controls by name, from the address after its ? and its #. Where both name a control, the part
 * after # counts. The address calls the text q.
 */
export function fromAddress() {
  const parts = [location.search, location.hash].map((part) => part.slice(1));
  const named = Object.fromEntries(parts.flatMap((part) => [...new URLSearchParams(part)]));
  return { ...named, query: named.q };
}

/**
 * Put the controls into the address after its #, which the browser sends to nobody. This adds no
 * entry to the history. A link that is too long is dropped: a shortened one would ask for something
 * else.
 */
export function toAddress({ query, ...others }) {
  const values = query === undefined ? others : { q: query, ...others };
  const link = new URLSearchParams(values).toString();
  const fits = link && link.length <= MAX_LINK_CHARS;
  history.replaceState(null, "", location.pathname + (fits ? `#${link}` : ""));
}

/** The body of POST /v1/recommend, without the empty controls. */
export function bodyOf(values) {
  const body = { query: values.query };
  if (values.history) body.query = { texts: values.query.split("\n").filter((line) => line.trim()) };
  if (values.k) body.k = Number(values.k);
  if (values.min_score) body.min_score = Number(values.min_score);
  if (values.diversity) body.diversity = Number(values.diversity);
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

/** The number of filters that are not empty. */
export const countFilters = (values) =>
  ["allow", "deny", "where"].filter((name) => values[name]).length;

/** Lines of field=value as an object. A field on several lines has a list of their values. */
function conditions(lines) {
  const where = {};
  for (const line of lines.split("\n")) {
    const at = line.indexOf("=");
    if (at < 1) continue;
    const name = line.slice(0, at).trim();
    const value = parseValue(line.slice(at + 1).trim());
    where[name] = Object.hasOwn(where, name) ? [where[name], value].flat() : value;
  }
  return where;
}

/** The value of a text: 3 is a number, true a boolean, "3" a text, and all that is not JSON a text. */
function parseValue(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? text : value;
  } catch {
    return text;
  }
}

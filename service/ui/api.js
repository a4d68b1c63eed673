// Talks to the service that sent this page: requests, problem documents, stage times. No DOM.

/** The service answered, and what it answered is an error. */
export class Problem extends Error {
  constructor(status, document, retryAfter) {
    super(document.detail || document.title || `The service answered with status ${status}.`);
    this.status = status;
    this.code = document.code || "";
    this.requestId = document.request_id || "";
    this.retryAfterS = Number(retryAfter) || null;
  }
}

/** No answer came at all. */
export class Offline extends Error {}

/** An address of this service, also where a proxy put it below a path. */
export const address = (path) => new URL(path, document.baseURI).href;

/** GET /v1/info of a model by name, or of the default one. */
export async function fetchInfo(key, model) {
  const path = model ? `v1/info?${new URLSearchParams({ model })}` : "v1/info";
  return (await send(path, { headers: authorization(key) })).content;
}

/**
 * POST /v1/recommend: {content, stages, tripMs}. Throws Problem, Offline, or AbortError where
 * `signal` called it off.
 */
export function recommend(body, key, signal) {
  return send("v1/recommend", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
}

/** Server-Timing as [{name, ms}]: the four stages and the rest, and their total. */
export function stagesOf(header) {
  const ms = {};
  for (const part of (header || "").split(",")) {
    const found = /^\s*([\w-]+)\s*;\s*dur=([\d.]+)/.exec(part);
    if (found) ms[found[1]] = Number(found[2]);
  }
  if (!("total" in ms)) return null;
  const stages = ["queue", "tokenize", "encode", "search"].map((name) => ({
    name,
    ms: ms[name] || 0,
  }));
  const rest = ms.total - stages.reduce((sum, stage) => sum + stage.ms, 0);
  stages.push({ name: "rest", ms: Math.max(0, rest) });
  return { stages, totalMs: ms.total, cached: /\bcache;desc=hit\b/.test(header) };
}

/** The request as a command for a shell; a key is named as a variable and never written out. */
export function asCurl(body, withKey) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [
    `curl -s ${quote(address("v1/recommend"))}`,
    "-H 'Content-Type: application/json'",
  ];
  if (withKey) lines.push('-H "Authorization: Bearer $ASTROLABE_API_KEY"');
  lines.push(`-d ${quote(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}

const authorization = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function send(path, options) {
  const startedMs = performance.now();
  let response, text;
  try {
    response = await fetch(address(path), options);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Offline("The service does not answer.");
  }
  const tripMs = performance.now() - startedMs;
  const content = parsed(text);
  if (!response.ok || content === null) {
    throw new Problem(response.status, content || {}, response.headers.get("Retry-After"));
  }
  return { content, stages: stagesOf(response.headers.get("Server-Timing")), tripMs };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a proxy's error page, say
  }
}

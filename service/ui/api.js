// Sends the page's requests to the service and reads its answers, errors and stage times.
// It touches no DOM.

/** An error that the service answered with: status, code and detail of its problem document (RFC 9457). */
export class Problem extends Error {
  constructor(status, document, retryAfter) {
    super(document.detail || document.title || `The service answered with status ${status}.`);
    this.status = status;
    this.code = document.code || "";
    this.requestId = document.request_id || "";
    this.retryAfterS = Number(retryAfter) || null;
  }
}

/** The service did not answer. */
export class Offline extends Error {}

/** The full address of a path of this service, even where a proxy serves it below a prefix. */
export const address = (path) => new URL(path, document.baseURI).href;

/** GET /v1/info of the model of that name, or of the default one. Throws like `recommend`. */
export async function fetchInfo(key, model) {
  const path = model ? `v1/info?${new URLSearchParams({ model })}` : "v1/info";
  return (await send(path, { headers: authorization(key) })).content;
}

/**
 * POST /v1/recommend; resolves to {content, stages, tripMs}. Throws Problem, Offline, or AbortError
 * where `signal` cancelled the request.
 */
export function recommend(body, key, signal) {
  return send("v1/recommend", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
}

/**
 * A Server-Timing header as {stages: [{name, ms}], totalMs, cached}: the four stages and the rest of
 * the total. Null without a total.
 */
export function stagesOf(header) {
  const ms = {};
  for (const part of (header || "").split(",")) {
    const match = /^\s*([\w-]+)\s*;\s*dur=([\d.]+)/.exec(part);
    if (match) ms[match[1]] = Number(match[2]);
  }
  if (!("total" in ms)) return null;
  const stages = ["queue", "tokenize", "encode", "search", "rerank"].map((name) => ({
    name,
    ms: ms[name] || 0,
  }));
  const rest = ms.total - stages.reduce((sum, stage) => sum + stage.ms, 0);
  stages.push({ name: "rest", ms: Math.max(0, rest) });
  return { stages, totalMs: ms.total, cached: /\bcache;desc=hit\b/.test(header) };
}

/** The request as a shell command. It names the key's variable and never contains the key. */
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
  const content = parseJson(text);
  if (!response.ok || content === null) {
    throw new Problem(response.status, content || {}, response.headers.get("Retry-After"));
  }
  return { content, stages: stagesOf(response.headers.get("Server-Timing")), tripMs };
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // for example a proxy's error page
  }
}

// Draws the bundle's operating points: measured precision against microseconds of search. It marks
// the effort of the form and the search time of the last answer. The table above the drawing has
// the numbers.

import { formatUs } from "./format.js";

const WIDTH = 304;
const HEIGHT = 128;
const LEFT = 34;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 30;

/**
 * An SVG drawing of operating points. `effort` is the name of the point to mark; `searchMs` is the
 * search time of the last answer, null before the first.
 */
export function curve(points, effort, searchMs) {
  const x = costScale(points, searchMs);
  const y = precisionScale(points);
  const at = (point) => [x(point.search_us_p50), y(point.p_at_1)];
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
  drawing.append(...axes(x, y, points));
  drawing.append(
    svg("polyline", {
      class: "frontier",
      points: frontier(points)
        .map((point) => at(point).join(","))
        .join(" "),
    }),
  );
  if (searchMs !== null) drawing.append(...marker(x(searchMs * 1000)));
  for (const point of points) {
    const [cx, cy] = at(point);
    const isMarked = point.name === effort;
    drawing.append(
      svg("circle", { class: isMarked ? "point chosen" : "point", cx, cy, r: isMarked ? 5 : 3.5 }),
    );
  }
  return drawing;
}

/** A line at the search time of the last answer. */
function marker(x) {
  const bottom = HEIGHT - BOTTOM;
  const side = x > WIDTH * 0.65 ? { shift: -4, anchor: "end" } : { shift: 4, anchor: "start" };
  return [
    svg("line", { class: "took", x1: x, x2: x, y1: TOP - 4, y2: bottom }),
    words("took", x + side.shift, bottom - 5, side.anchor, "this answer"),
  ];
}

/** The points that are more precise than every cheaper one, cheapest first. */
function frontier(points) {
  const byCost = [...points].sort((a, b) => a.search_us_p50 - b.search_us_p50);
  let best = -Infinity;
  return byCost.filter((point) => {
    const better = point.p_at_1 > best;
    best = Math.max(best, point.p_at_1);
    return better;
  });
}

/** A function from microseconds to pixels, on a logarithmic scale. */
function costScale(points, searchMs) {
  const costs = points.map((point) => point.search_us_p50);
  if (searchMs !== null) costs.push(searchMs * 1000);
  const logs = costs.map((cost) => Math.log10(Math.max(cost, 1)));
  const low = Math.min(...logs) - 0.15;
  const high = Math.max(...logs) + 0.15;
  return (cost) =>
    LEFT + ((Math.log10(Math.max(cost, 1)) - low) / (high - low)) * (WIDTH - LEFT - RIGHT);
}

/**
 * A function from percent to pixels, the best on top. The scale spans one percentage point at least,
 * so that small differences look small.
 */
function precisionScale(points) {
  const precisions = points.map((point) => point.p_at_1);
  const high = Math.max(...precisions);
  const span = Math.max(high - Math.min(...precisions), 1);
  const room = HEIGHT - TOP - BOTTOM - 16;
  return (precision) => TOP + 6 + ((high - precision) / span) * room;
}

function axes(x, y, points) {
  const precisions = ends(
    points.map((point) => point.p_at_1),
    y,
    12,
  );
  const costs = ends(
    points.map((point) => point.search_us_p50),
    x,
    56,
  );
  const bottom = HEIGHT - BOTTOM;
  return [
    svg("path", { class: "axis", d: `M${LEFT} ${TOP - 4}V${bottom}H${WIDTH - RIGHT}` }),
    ...precisions.map((p) => words("tick", LEFT - 5, y(p) + 4, "end", p.toFixed(1))),
    ...costs.map((us) => words("tick", x(us), bottom + 13, "middle", formatUs(us))),
    words("tick", LEFT, HEIGHT - 3, "start", "P@1 over search time, logarithmic"),
  ];
}

/** The least and the greatest value, or only the greatest where the two labels would overlap. */
function ends(values, scale, roomPx) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return Math.abs(scale(high) - scale(low)) < roomPx ? [high] : [low, high];
}

function words(kind, x, y, anchor, text) {
  const element = svg("text", { class: kind, x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, String(value));
  }
  return element;
}

// Formats numbers and times for people.

export const formatMs = (ms) =>
  (ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0)) + " ms";
export const formatUs = (us) =>
  us < 1000 ? `${us.toFixed(0)} µs` : `${(us / 1000).toFixed(2)} ms`;
export const formatCount = (count) => count.toLocaleString("en");
export const formatTime = (iso) =>
  iso.replace("T", " ").replace(/(:\d\d)(:\d\d(\.\d+)?)?(Z|\+00:00)$/, "$1 UTC");

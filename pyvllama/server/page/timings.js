// What an answer cost, in a line that people can read.

/** "38 ms", "1.4 s", "2 min 5 s" */
export function duration(ms) {
  if (ms < 1) return "under 1 ms";
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** "1 token", "24 tokens" */
export const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** "8.4/s", "210/s" */
const rate = (perSecond) => `${perSecond < 20 ? perSecond.toFixed(1) : Math.round(perSecond).toLocaleString("en")}/s`;

/**
 * The parts of the line under an answer.
 * @param {Object} message of the assistant; what its server did not tell is left away
 * @param {?number} nCtx positions of the context
 * @returns {string[]}
 */
export function costs({ timings = {}, usage = {}, seconds = {} }, nCtx) {
  const line = [];
  const { image_encode_ms: encodeMs, image_cached: nCached } = timings;
  if (encodeMs > 0) line.push(`picture ${duration(encodeMs)}`);
  if (nCached > 0) line.push(nCached === 1 ? "picture from cache" : `${nCached} pictures from cache`);
  if (timings.prompt_n > 0) line.push(`prompt ${count(timings.prompt_n, "token")} in ${duration(timings.prompt_ms)}`);
  const nTokens = timings.predicted_n ?? usage.completion_tokens;
  if (nTokens > 0) {
    const perSecond = timings.predicted_per_second;
    line.push(`answer ${count(nTokens, "token")}${perSecond > 0 ? ` at ${rate(perSecond)}` : ""}`);
  }
  if (seconds.total !== undefined) line.push(`${duration(seconds.total * 1000)} in all`);
  if (nCtx && usage.total_tokens > nCtx / 2) line.push(`${Math.round((100 * usage.total_tokens) / nCtx)} % of the context`);
  return line;
}

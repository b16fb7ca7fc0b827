// The server: its models, its defaults, and answers that come in pieces. Speaks OpenAI's API.

import { events } from "./stream.js";

/** What went wrong, in words for people, and what can be done about it. */
class ServerError extends Error {
  /**
   * @param {string} message
   * @param {Object} about `retryAfter` in seconds, `needsKey`
   */
  constructor(message, { retryAfter = null, needsKey = false } = {}) {
    super(message);
    Object.assign(this, { retryAfter, needsKey });
  }
}

const UNREACHABLE = "The server cannot be reached. Is pyvllama serve still running, and the network up?";
const CUT_OFF = "The connection to the server broke before the answer was complete.";

let key = "";

/** The API key that is sent from now on; "" for none. */
export function useKey(text) {
  key = text;
}

/** Names of the models that can be asked, the server's default first. */
export async function models() {
  const answer = await (await request("v1/models")).json().catch(() => ({}));
  return Array.isArray(answer.data) ? answer.data.map((model) => String(model.id)) : [];
}

/** {nCtx, defaults}: positions of the context and sampling defaults; empty where the server does not tell. */
export async function properties() {
  try {
    const props = await (await request("props")).json();
    const settings = props.default_generation_settings ?? {};
    return { nCtx: settings.n_ctx ?? props.n_ctx ?? null, defaults: settings.params ?? {} };
  } catch {
    return { nCtx: null, defaults: {} };
  }
}

/**
 * Asks for an answer.
 * @param {Object} body of /v1/chat/completions, without what asks for a stream
 * @param {AbortSignal} signal aborting closes the connection, which stops the server
 * @yields {{accepted: true} | {text: string} | {finish: string} | {usage: Object} | {timings: Object}}
 *     `accepted` first: the server took the request and will answer
 * @throws {ServerError} and AbortError
 */
export async function* ask(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  yield { accepted: true };
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") continue; // the stream ends by itself
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(messageOf(chunk) ?? "The server failed.");
      const choice = chunk.choices?.[0];
      if (typeof choice?.delta?.content === "string" && choice.delta.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { usage: chunk.usage };
      if (chunk.timings) yield { timings: chunk.timings };
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError(error instanceof SyntaxError ? "The server sent something that is no answer." : CUT_OFF);
  }
  signal.throwIfAborted();
  if (!finished) throw new ServerError(CUT_OFF);
}

/** Fetches from the server that the page came from, with the key. */
async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(UNREACHABLE);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** The error that a response stands for. */
async function failure(response) {
  const { status } = response;
  const said = messageOf(await response.json().catch(() => null));
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  const retryAfter = Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : null;
  const about = { retryAfter, needsKey: status === 401 };
  if (status === 401) return new ServerError(key ? "The server does not take this API key." : "The server asks for an API key.", about);
  if (status === 413) return new ServerError(`This is more than the server takes at once. ${said ?? ""}`.trim(), about);
  if (status === 429) return new ServerError("The server is busy: its queue is full.", about);
  return new ServerError(said ?? `The server answered with HTTP status ${status}.`, about);
}

/** The message in OpenAI's error shape, or in FastAPI's own. */
function messageOf(body) {
  const said = body?.error?.message ?? body?.error ?? body?.detail;
  return typeof said === "string" && said ? said : null;
}

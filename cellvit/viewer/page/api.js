// @ts-check
/** The one way to data: the server's, or those of a static share, which lie beside the page. */

/** @typedef {{json: Record<string, any>, load: (path: string) => Promise<ArrayBuffer>}} StaticShare */

const share = /** @type {{CELLVIT_STATIC?: StaticShare}} */ (globalThis).CELLVIT_STATIC;

/** Whether there is no server: nothing can be labelled, and the page counts by itself. */
export const isStatic = Boolean(share);

/** What the server says is wrong, and what to do. */
export class ApiError extends Error {
  /**
   * @param {string} text
   * @param {string} hint
   * @param {number} status
   */
  constructor(text, hint, status) {
    super(text);
    this.hint = hint;
    this.status = status;
  }
}

/** Tells when the server stops answering ("offline"), answers again ("online"), and has to prepare an answer ("busy"). */
export const connection = new EventTarget();
let online = true;

/** Ask every two seconds until the server answers again. */
async function waitForServer() {
  while (!online) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    try {
      online = (await fetch("api/slides", { cache: "no-store" })).ok;
    } catch {
      // still gone
    }
  }
  connection.dispatchEvent(new Event("online"));
}

/**
 * Return the server's answer to a request that went well.
 *
 * @param {string} address
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    if (online) {
      online = false;
      connection.dispatchEvent(new Event("offline"));
      void waitForServer();
    }
    throw new ApiError("The server does not answer", "offline", 0);
  }
  if (answer.ok) return answer;
  if (answer.status === 503 && answer.headers.has("Retry-After")) {
    connection.dispatchEvent(new Event("busy")); // an index is made, once
    await new Promise((resolve) => setTimeout(resolve, 1000 * Number(answer.headers.get("Retry-After"))));
    options.signal?.throwIfAborted();
    return ask(address, options);
  }
  let text = `The server answered ${answer.status} to ${address.split("?")[0]}`;
  let hint = "";
  try {
    ({ error: text = text, hint = hint } = await answer.json());
  } catch {
    // an answer without our words
  }
  throw new ApiError(text, hint, answer.status);
}

/**
 * Return what an address answers as JSON.
 *
 * @param {string} path
 * @param {URLSearchParams | null} [query]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function getJson(path, query = null, signal) {
  if (share) {
    if (path in share.json) return share.json[path];
    throw new ApiError("This share does not hold that", "Open the results with `cellvit view` to see it", 404);
  }
  return (await ask(withQuery(path, query), { signal })).json();
}

/**
 * Return what an address answers as bytes.
 *
 * @param {string} path
 * @param {URLSearchParams | null} query
 * @param {AbortSignal} signal
 * @returns {Promise<ArrayBuffer>}
 */
export async function getBytes(path, query, signal) {
  if (share) return share.load(path);
  return (await ask(withQuery(path, query), { signal })).arrayBuffer();
}

/**
 * Send data and return what the server answers.
 *
 * @param {string} path
 * @param {object} data
 * @returns {Promise<any>}
 */
export async function postJson(path, data) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(data) })).json();
}

/**
 * Return the address of something of a slide.
 *
 * @param {string} slide
 * @param {string} [rest]
 * @returns {string}
 */
export function slidePath(slide, rest = "") {
  return `api/slides/${encodeURIComponent(slide)}${rest && `/${rest}`}`;
}

/**
 * Return an address with its query, if there is any.
 *
 * @param {string} path
 * @param {URLSearchParams | null} query
 * @returns {string}
 */
function withQuery(path, query) {
  const text = query?.toString();
  return text ? `${path}?${text}` : path;
}

// @ts-check
/** What is shown and how; it is kept in the address, so that a view can be sent. */

/** @typedef {import("./types.js").Point} Point */

/**
 * @typedef {object} ViewState
 * @property {string | null} slide
 * @property {number | null} x  middle of the view, level-0 pixels
 * @property {number | null} y
 * @property {number | null} scale  CSS pixels per level-0 pixel
 * @property {number} rotation  degrees
 * @property {string} color  a column, "" for types
 * @property {[number, number] | null} range  of the colours, null for the column's own
 * @property {number[]} hidden  ids of types
 * @property {number} minProb
 * @property {Record<string, [number | null, number | null]>} ranges  of columns
 * @property {Point[] | null} region
 * @property {number} opacity  0 to 1
 * @property {string} draw  how nuclei are drawn
 * @property {string[]} off  layers that are not shown
 */

/** Ways of drawing nuclei. */
export const DRAW_MODES = ["auto", "density", "points", "outlines"];

/**
 * Return the state of a fresh page.
 *
 * @param {string | null} [slide]
 * @returns {ViewState}
 */
export function freshState(slide = null) {
  return {
    slide,
    x: null,
    y: null,
    scale: null,
    rotation: 0,
    color: "",
    range: null,
    hidden: [],
    minProb: 0,
    ranges: {},
    region: null,
    opacity: 1,
    draw: "auto",
    off: [],
  };
}

/**
 * Return a state as the part of an address after "#"; what is as on a fresh page is left out.
 *
 * @param {ViewState} state
 * @returns {string}
 */
export function encodeState(state) {
  const query = new URLSearchParams();
  if (state.slide !== null) query.set("slide", state.slide);
  if (state.x !== null && state.y !== null && state.scale !== null) {
    query.set("x", state.x.toFixed(1));
    query.set("y", state.y.toFixed(1));
    query.set("scale", Number(state.scale.toPrecision(5)).toString());
  }
  if (state.rotation) query.set("rotation", String(Number(state.rotation.toFixed(2))));
  if (state.color) query.set("color", state.color);
  if (state.range) query.set("range", state.range.join(","));
  if (state.hidden.length) query.set("hidden", state.hidden.join(","));
  if (state.minProb) query.set("min_prob", String(state.minProb));
  for (const [name, [low, high]] of Object.entries(state.ranges)) query.set(`only.${name}`, `${low ?? ""},${high ?? ""}`);
  if (state.region) query.set("region", polygonText(state.region));
  if (state.opacity < 1) query.set("opacity", String(state.opacity));
  if (state.draw !== "auto") query.set("draw", state.draw);
  if (state.off.length) query.set("off", state.off.join(","));
  return query.toString();
}

/**
 * Return the state that an address tells; what makes no sense is as on a fresh page.
 *
 * @param {string} text  the part after "#"
 * @returns {ViewState}
 */
export function decodeState(text) {
  const query = new URLSearchParams(text);
  const state = freshState(query.get("slide"));
  /** @param {string} name */
  const number = (name) => asNumber(query.get(name));
  /** @param {string} name */
  const numbers = (name) => (query.get(name) ?? "").split(",").map(asNumber);
  [state.x, state.y, state.scale] = [number("x"), number("y"), number("scale")];
  if (state.scale !== null && state.scale <= 0) state.scale = null;
  state.rotation = (number("rotation") ?? 0) % 360;
  state.color = query.get("color") ?? "";
  const [low, high] = numbers("range");
  if (low !== null && high !== null && high !== undefined) state.range = [low, high];
  state.hidden = /** @type {number[]} */ (numbers("hidden").filter((id) => id !== null && id >= 0 && id < 256));
  state.minProb = Math.min(1, Math.max(0, number("min_prob") ?? 0));
  for (const [name, value] of query) {
    if (!name.startsWith("only.")) continue;
    const [from, to] = value.split(",").map(asNumber);
    if (from !== null || (to ?? null) !== null) state.ranges[name.slice(5)] = [from, to ?? null];
  }
  const flat = numbers("region");
  if (flat.length >= 6 && flat.length % 2 === 0 && !flat.includes(null)) {
    state.region = flat.flatMap((x, i) => (i % 2 ? [] : [/** @type {Point} */ ([x, flat[i + 1]])]));
  }
  state.opacity = Math.min(1, Math.max(0, number("opacity") ?? 1));
  const draw = query.get("draw") ?? "auto";
  state.draw = DRAW_MODES.includes(draw) ? draw : "auto";
  state.off = (query.get("off") ?? "").split(",").filter(Boolean);
  return state;
}

/**
 * Return what the server is asked to leave out.
 *
 * @param {ViewState} state
 * @returns {Record<string, string>}
 */
export function filterOf(state) {
  /** @type {Record<string, string>} */
  const filter = {};
  if (state.minProb) filter.min_prob = String(state.minProb);
  for (const [name, [low, high]] of Object.entries(state.ranges)) {
    if (low !== null) filter[`${name}.min`] = String(low);
    if (high !== null) filter[`${name}.max`] = String(high);
  }
  if (state.region) filter.polygon = polygonText(state.region);
  return filter;
}

/**
 * Return the part of a filter that says which types, empty if all are shown.
 *
 * @param {ViewState} state
 * @param {{id: number}[]} classes
 * @returns {Record<string, string>}
 */
export function typeFilter(state, classes) {
  if (!state.hidden.length) return {};
  return { classes: classes.map(({ id }) => id).filter((id) => !state.hidden.includes(id)).join(",") };
}

/**
 * Return a polygon as "x,y,x,y,...".
 *
 * @param {Point[]} polygon
 * @returns {string}
 */
function polygonText(polygon) {
  return polygon.map(([x, y]) => `${Math.round(x)},${Math.round(y)}`).join(",");
}

/**
 * Return a number that a text states, or null.
 *
 * @param {string | null} text
 * @returns {number | null}
 */
function asNumber(text) {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : null;
}

// @ts-check
/** Making elements. Text becomes text nodes, never HTML: names of classes come from strangers' files. */

/** @typedef {string | number | boolean | null | undefined | ((event: any) => void)} AttributeValue */

/**
 * Return a new element.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, AttributeValue>} [attributes]  `onclick` and the like take functions; true sets, false leaves out
 * @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/**
 * Return the element of the page with an id.
 *
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no element "${id}"`);
  return node;
}

/**
 * Return a small square of a colour.
 *
 * @param {string} color
 * @returns {HTMLElement}
 */
export function swatch(color) {
  const node = el("span", { class: "swatch", "aria-hidden": "true" });
  node.style.backgroundColor = color;
  return node;
}

/**
 * Return a bar of shares, one piece per class.
 *
 * @param {{name: string, color: string, count: number}[]} classes
 * @returns {HTMLElement}
 */
export function shareBar(classes) {
  const bar = el("span", { class: "sharebar", "aria-hidden": "true" });
  for (const entry of classes.filter(({ count }) => count > 0)) {
    const piece = el("span", { title: `${entry.name}: ${formatCount(entry.count)}` });
    piece.style.flexGrow = String(entry.count);
    piece.style.backgroundColor = entry.color;
    bar.append(piece);
  }
  return bar;
}

/**
 * Return a whole number with thousands separated.
 *
 * @param {number} value
 * @returns {string}
 */
export function formatCount(value) {
  return Math.round(value).toLocaleString("en");
}

/**
 * Return a number with three significant digits.
 *
 * @param {number | string | null} value
 * @returns {string}
 */
export function formatValue(value) {
  if (value === null || value === undefined || (typeof value === "number" && !Number.isFinite(value))) return "–";
  if (typeof value === "string") return value;
  if (Number.isInteger(value)) return formatCount(value);
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
    ? value.toExponential(2)
    : value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) >= 100 ? 4 : 3 });
}

/**
 * Call a function once calls to it have paused.
 *
 * @param {() => unknown} action
 * @param {number} milliseconds
 * @returns {() => void}
 */
export function debounce(action, milliseconds) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

// @ts-check
/** The list of slides: pictures, counts, warnings, and the way to each. */
import { isStatic, slidePath } from "./api.js";
import { byId, el, formatCount, shareBar, swatch } from "./dom.js";

/** @typedef {import("./types.js").SlideSummary} SlideSummary */

/** Ways to sort, and what is compared. */
const ORDERS = /** @type {const} */ ({
  given: "As given",
  name: "Name",
  nuclei: "Most nuclei",
  density: "Most per mm²",
  warnings: "Warnings first",
});

/**
 * Return slides in an order, those that match a text only.
 *
 * @param {SlideSummary[]} slides
 * @param {string} text
 * @param {string} order  a key of the orders
 * @returns {SlideSummary[]}
 */
export function arranged(slides, text, order) {
  const wanted = text.trim().toLowerCase();
  const found = slides.filter(({ name }) => name.toLowerCase().includes(wanted));
  /** @type {Record<string, (slide: SlideSummary) => number>} */
  const size = {
    nuclei: (slide) => slide.nuclei ?? -1,
    density: (slide) => perArea(slide) ?? -1,
    warnings: (slide) => slide.warnings.length + (slide.error ? 1000 : 0),
  };
  if (order === "name") return found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  if (order in size) return found.sort((a, b) => size[order](b) - size[order](a));
  return found;
}

/**
 * Return nuclei per mm², or null.
 *
 * @param {SlideSummary} slide
 * @returns {number | null}
 */
function perArea({ nuclei, area_mm2: area }) {
  return nuclei !== null && area ? nuclei / area : null;
}

/**
 * Return the card of a slide.
 *
 * @param {SlideSummary} slide
 * @returns {HTMLElement}
 */
function card(slide) {
  const density = perArea(slide);
  const address = `#slide=${encodeURIComponent(slide.id)}`;
  const picture = slide.thumbnail
    ? el("img", { src: slidePath(slide.id, "thumbnail.jpg"), alt: "", loading: "lazy", decoding: "async" })
    : el("span", { class: "nothing" }, slide.has_image ? "no picture" : "no image");
  picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "nothing" }, "no picture")));
  const facts = [
    slide.nuclei === null ? "no nuclei yet" : `${formatCount(slide.nuclei)} nuclei`,
    density === null ? null : `${formatCount(density)} per mm²`,
    slide.labels ? `${formatCount(slide.labels)} labels` : null,
  ].filter((text) => text !== null);
  const known = slide.classes.filter(({ count }) => count > 0).sort((a, b) => b.count - a.count);
  const total = known.reduce((sum, { count }) => sum + count, 0);
  const shares = known
    .slice(0, 4)
    .map(({ name, color, count }) => el("li", {}, swatch(color), `${name} ${((100 * count) / total).toFixed(count / total < 0.1 ? 1 : 0)} %`));
  return el(
    "article",
    { class: slide.error ? "card failed" : "card" },
    el("a", { href: address, class: "picture", tabindex: "-1", "aria-hidden": "true" }, picture),
    el("h2", {}, el("a", { href: address }, slide.name)),
    el("p", { class: "facts" }, facts.join(" · ")),
    total ? shareBar(known) : null,
    total ? el("ul", { class: "shares" }, ...shares) : null,
    slide.error ? el("p", { class: "bad" }, slide.error) : null,
    warningList(slide.warnings),
  );
}

/**
 * Return warnings, folded where there are several; null without any.
 *
 * @param {string[]} warnings
 * @returns {HTMLElement | null}
 */
export function warningList(warnings) {
  if (!warnings.length) return null;
  if (warnings.length === 1) return el("p", { class: "warning" }, warnings[0]);
  const items = warnings.map((text) => el("li", {}, text));
  return el("details", { class: "warning" }, el("summary", {}, `${warnings.length} warnings`), el("ul", {}, ...items));
}

/**
 * Show the slides.
 *
 * @param {import("./types.js").Cohort} cohort
 */
export function showCohort({ title, slides }) {
  document.title = title;
  byId("title").textContent = title;
  const sum = slides.reduce((total, { nuclei }) => total + (nuclei ?? 0), 0);
  const number = `${formatCount(slides.length)} ${slides.length === 1 ? "slide" : "slides"}`;
  byId("summary").textContent = `${title === number ? "" : `${number} · `}${formatCount(sum)} nuclei`;
  const list = el("div", { class: "cards" });
  const search = el("input", { type: "search", placeholder: "Find a slide", "aria-label": "Find a slide" });
  const options = Object.entries(ORDERS).map(([value, text]) => el("option", { value }, text));
  const order = el("select", { "aria-label": "Order" }, ...options);
  const fill = () => {
    const found = arranged([...slides], search.value, order.value);
    list.replaceChildren(...found.map(card));
    if (!found.length) list.append(el("p", { class: "empty" }, slides.length ? "No slide has that name." : "There are no slides here."));
  };
  search.addEventListener("input", fill);
  order.addEventListener("change", fill);
  const place = byId("cohort");
  place.replaceChildren(el("div", { class: "find" }, search, order), list);
  if (isStatic) place.append(el("p", { class: "soft" }, "A share: made to look at, without a server."));
  fill();
}

// @ts-check
/** What is known of one nucleus. */
import { getJson, isStatic, slidePath } from "./api.js";
import { el, formatValue, swatch } from "./dom.js";
import { percent, section } from "./panel.js";
import { toastError } from "./toast.js";

/** @typedef {import("./types.js").Nucleus} Nucleus */
/** @typedef {import("./types.js").Point} Point */

/** The part of the panel that tells about the nucleus that was clicked. */
export class NucleusPanel {
  /**
   * @param {import("./types.js").Slide} slide
   * @param {{selected: (nucleus: Nucleus | null) => void, go: (x: number, y: number) => void}} events
   */
  constructor(slide, events) {
    this.slide = slide;
    this.events = events;
    /** @type {Nucleus | null} */
    this.nucleus = null;
    this.body = el("div", { class: "nucleus" });
    this.node = section("Nucleus", true, this.body);
    this.node.hidden = true;
  }

  /**
   * Show the nucleus at a place; none closes the part.
   *
   * @param {Point} point
   * @param {number} radius  level-0 pixels
   * @param {{row: number, x: number, y: number, type: number} | null} nearest  what the page knows of it
   * @returns {Promise<Nucleus | null>}
   */
  async pick([x, y], radius, nearest) {
    if (isStatic) return nearest ? this.showRow(nearest.row, nearest) : this.show(null);
    const query = new URLSearchParams({ x: x.toFixed(2), y: y.toFixed(2), radius: radius.toFixed(2) });
    try {
      return this.show(await getJson(slidePath(this.slide.id, "at"), query));
    } catch (error) {
      if (/** @type {{status?: number}} */ (error).status !== 404) toastError(error);
      return this.show(null); // there is no nucleus there
    }
  }

  /**
   * Show a nucleus by its row.
   *
   * @param {number} row
   * @param {{x: number, y: number, type: number} | null} [known]  shown where a share holds no more
   * @returns {Promise<Nucleus | null>}
   */
  async showRow(row, known = null) {
    try {
      return this.show(await getJson(slidePath(this.slide.id, `nuclei/${row}`)));
    } catch (error) {
      if (!known) {
        toastError(error);
        return this.nucleus;
      }
      const nothing = { probability: null, probabilities: null, area_um2: null, outline: null, label: null };
      return this.show({ row, x: known.x, y: known.y, class: known.type, ...nothing, measurements: [], neighbors: [] });
    }
  }

  /**
   * Show a nucleus, or close the part.
   *
   * @param {Nucleus | null} nucleus
   * @returns {Nucleus | null}
   */
  show(nucleus) {
    this.nucleus = nucleus;
    this.node.hidden = nucleus === null;
    this.body.replaceChildren(...(nucleus ? this.parts(nucleus) : []));
    this.events.selected(nucleus);
    return nucleus;
  }

  /**
   * Return what is shown of a nucleus.
   *
   * @param {Nucleus} nucleus
   * @returns {HTMLElement[]}
   */
  parts(nucleus) {
    const { mpp } = this.slide;
    const place = mpp
      ? `${formatValue((nucleus.x * mpp[0]) / 1000)} mm, ${formatValue((nucleus.y * mpp[1]) / 1000)} mm`
      : `${formatValue(nucleus.x)} px, ${formatValue(nucleus.y)} px`;
    const facts = [
      ["Label", nucleus.label],
      ["Area", nucleus.area_um2 === null ? null : `${formatValue(nucleus.area_um2)} µm²`],
      ["Place", place],
    ].filter(([, value]) => value !== null);
    const list = facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
    const close = el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => this.show(null) }, "×");
    const sure = nucleus.probability === null ? "" : ` ${percent(nucleus.probability)}`;
    return [
      el("p", { class: "headline" }, swatch(this.typeOf(nucleus.class).color), el("b", {}, nucleus.class_name ?? this.typeOf(nucleus.class).name), el("span", { class: "soft" }, sure), close),
      ...this.probabilities(nucleus),
      el("dl", {}, ...list),
      ...this.measurements(nucleus),
      ...this.neighbors(nucleus),
    ];
  }

  /**
   * Return name and colour of a type.
   *
   * @param {number} id
   * @returns {{name: string, color: string}}
   */
  typeOf(id) {
    return this.slide.nuclei?.classes.find((entry) => entry.id === id) ?? { name: "No type", color: "#808080" };
  }

  /**
   * Return the colour of a type by its name.
   *
   * @param {string} name
   * @returns {string}
   */
  colorOf(name) {
    return this.slide.nuclei?.classes.find((entry) => entry.name === name)?.color ?? "#808080";
  }

  /**
   * Return a bar per type.
   *
   * @param {Nucleus} nucleus
   * @returns {HTMLElement[]}
   */
  probabilities({ probabilities }) {
    if (!probabilities) return [];
    const rows = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
    const items = rows.map(([name, share]) => {
      const bar = el("span", { class: "meter", "aria-hidden": "true" });
      const filled = el("span");
      filled.style.width = `${100 * share}%`;
      filled.style.backgroundColor = this.colorOf(name);
      bar.append(filled);
      return el("li", {}, el("span", { class: "name" }, name), bar, el("span", { class: "number" }, percent(share)));
    });
    return [el("ul", { class: "probabilities" }, ...items)];
  }

  /**
   * Return a folded table of measurements.
   *
   * @param {Nucleus} nucleus
   * @returns {HTMLElement[]}
   */
  measurements({ measurements }) {
    if (!measurements.length) return [];
    const rows = measurements.map(({ label, value, unit }) =>
      el("tr", {}, el("th", { scope: "row" }, label), el("td", {}, `${formatValue(value)}${unit ? ` ${unit}` : ""}`)),
    );
    const summary = el("summary", {}, `${measurements.length} measurements`);
    return [el("details", {}, summary, el("table", { class: "measurements" }, el("tbody", {}, ...rows)))];
  }

  /**
   * Return buttons to the neighbours.
   *
   * @param {Nucleus} nucleus
   * @returns {HTMLElement[]}
   */
  neighbors({ neighbors }) {
    if (!neighbors.length) return [];
    const items = neighbors.map(({ row, distance_um: micrometres, distance_px: pixels, class: id }) => {
      const { name, color } = this.typeOf(id);
      const text = micrometres === null ? `${formatValue(pixels ?? null)} px` : `${formatValue(Math.round(micrometres * 10) / 10)} µm`;
      const label = `Neighbour: ${name}, ${text}`;
      return el("li", {}, el("button", { type: "button", class: "plain", "aria-label": label, title: name, onclick: () => this.follow(row) }, swatch(color), text));
    });
    return [el("p", { class: "soft" }, "Neighbours"), el("ul", { class: "neighbors" }, ...items)];
  }

  /**
   * Show a neighbour and go there.
   *
   * @param {number} row
   */
  async follow(row) {
    const nucleus = await this.showRow(row);
    if (nucleus) this.events.go(nucleus.x, nucleus.y);
  }
}

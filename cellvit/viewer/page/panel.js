// @ts-check
/** Parts of the panel beside the picture: types, colours, filters, layers. */
import { isStatic } from "./api.js";
import { rampColor } from "./color.js";
import { el, formatCount, formatValue, swatch } from "./dom.js";
import { categoryColor } from "./nuclei.js";
import { DRAW_MODES } from "./state.js";

/** @typedef {import("./types.js").Slide} Slide */
/** @typedef {import("./types.js").Column} Column */
/** @typedef {import("./state.js").ViewState} ViewState */

/**
 * What the parts share: the slide, the state, and what to call when the state has changed.
 *
 * @typedef {{slide: Slide, state: ViewState, changed: () => void}} Context
 */

/**
 * Return a part of the panel that folds.
 *
 * @param {string} title
 * @param {boolean} open
 * @param {...(Node | string | null)} children
 * @returns {HTMLDetailsElement}
 */
export function section(title, open, ...children) {
  return el("details", { class: "section", open }, el("summary", {}, el("h2", {}, title)), ...children);
}

/**
 * Return a control with its name.
 *
 * @param {string} name
 * @param {Node} control
 * @returns {HTMLElement}
 */
function named(name, control) {
  return el("label", { class: "named" }, el("span", {}, name), control);
}

/** The types: which are shown, in which colour, and how many are in view. */
export class TypePanel {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    /** @type {Map<number, HTMLElement>} */
    this.counts = new Map();
    this.list = el("ul", { class: "types" });
    this.total = el("p", { class: "total", role: "status" });
    this.node = section("Nuclei in view", true, this.total, this.list);
    this.fill();
  }

  /** Make the rows anew. */
  fill() {
    const { slide, state, changed } = this.context;
    this.counts.clear();
    if (!slide.nuclei) {
      this.list.replaceChildren(el("li", { class: "empty" }, "There are no nuclei here. Run `cellvit segment` on the slide to find them."));
      return;
    }
    const rows = slide.nuclei.classes.map(({ id, name, color, count }) => {
      const number = el("span", { class: "number" });
      this.counts.set(id, number);
      const box = el("input", {
        type: "checkbox",
        value: id,
        checked: !state.hidden.includes(id),
        onchange: () => {
          state.hidden = box.checked ? state.hidden.filter((other) => other !== id) : [...state.hidden, id];
          changed();
        },
      });
      const only = el(
        "button",
        {
          type: "button",
          class: "plain only",
          title: `Show only ${name}`,
          "aria-label": `Show only ${name}`,
          onclick: () => {
            const others = /** @type {import("./types.js").NucleiInfo} */ (slide.nuclei).classes.map((entry) => entry.id).filter((other) => other !== id);
            const already = others.every((other) => state.hidden.includes(other)) && !state.hidden.includes(id);
            state.hidden = already ? [] : others;
            for (const other of this.list.querySelectorAll("input")) other.checked = !state.hidden.includes(Number(other.value));
            changed();
          },
        },
        "only",
      );
      const label = el("label", { title: `${formatCount(count)} in all` }, box, swatch(color), el("span", { class: "name" }, name), number);
      return el("li", {}, label, only);
    });
    const learntOn = slide.nuclei.types_learnt_on;
    if (learntOn) rows.push(el("li", { class: "soft" }, `Types learnt on ${learntOn}: a guess on other tissue.`));
    this.list.replaceChildren(...rows);
  }

  /** @param {{total: number, classes: Record<string, number>} | null} counts  null while they are not known */
  setCounts(counts) {
    const all = this.context.slide.nuclei?.count ?? 0;
    this.total.textContent = counts ? `${formatCount(counts.total)} of ${formatCount(all)}` : "";
    for (const [id, number] of this.counts) number.textContent = counts ? formatCount(counts.classes[id] ?? 0) : "";
  }
}

/**
 * Return the choice of what the colours tell, with their legend.
 *
 * @param {Context} context
 * @returns {HTMLElement}
 */
export function colorPanel(context) {
  const { slide, state, changed } = context;
  const columns = slide.nuclei?.columns ?? [];
  const choice = el(
    "select",
    { id: "colorchoice", "aria-label": "Colour by", onchange: () => choose(choice.value) },
    el("option", { value: "" }, "Type"),
    ...columns.map(({ name, label }) => el("option", { value: name }, label)),
  );
  const legend = el("div", { class: "legend" });
  /** @param {string} name */
  const choose = (name) => {
    state.color = name;
    state.range = null;
    show();
    changed();
  };
  const show = () => {
    choice.value = columns.some(({ name }) => name === state.color) ? state.color : "";
    const column = columns.find(({ name }) => name === state.color);
    legend.replaceChildren(...(column ? columnLegend(column, context) : []));
  };
  const opacity = el("input", {
    type: "range",
    min: 0.1,
    max: 1,
    step: 0.05,
    value: state.opacity,
    oninput: () => {
      state.opacity = Number(opacity.value);
      changed();
    },
  });
  const words = { auto: "As fits the zoom", density: "Density", points: "Points", outlines: "Outlines" };
  const draw = el(
    "select",
    {
      onchange: () => {
        state.draw = draw.value;
        changed();
      },
    },
    ...DRAW_MODES.map((mode) => el("option", { value: mode, selected: mode === state.draw }, words[/** @type {"auto"} */ (mode)])),
  );
  show();
  const note = slide.nuclei && !slide.nuclei.outlines ? el("p", { class: "soft" }, slide.nuclei.outlines_note ?? "The table holds no outlines: nuclei are points.") : null;
  return section("Colour", true, named("Colour by", choice), legend, named("Opacity", opacity), named("Draw", draw), el("p", { class: "soft", id: "drawnas" }), note);
}

/**
 * Return the legend of a column: its categories, or the map of numbers with its ends.
 *
 * @param {Column} column
 * @param {Context} context
 * @returns {HTMLElement[]}
 */
function columnLegend(column, { slide, state, changed }) {
  if (column.kind === "category") {
    const classes = slide.nuclei?.classes ?? [];
    const items = (column.values ?? []).map((name, i) => el("li", {}, swatch(categoryColor(classes, name, i)), name));
    return [el("ul", { class: "categories" }, ...items)];
  }
  const ramp = el("span", { class: "ramp", role: "img", "aria-label": "Colours from low to high" });
  const stops = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1].map((share) => `rgb(${rampColor(share).join(" ")})`);
  ramp.style.backgroundImage = `linear-gradient(90deg, ${stops.join(", ")})`;
  const [low, high] = state.range ?? [column.low, column.high];
  /** @param {number} value @param {string} name */
  const end = (value, name) => el("input", { type: "number", step: "any", value: Number(value.toPrecision(4)), "aria-label": name, onchange: () => set() });
  const from = end(low, "Lowest colour at");
  const to = end(high, "Highest colour at");
  const set = () => {
    const wanted = [Number(from.value), Number(to.value)];
    if (from.value === "" || to.value === "" || wanted[0] >= wanted[1]) {
      [from.value, to.value] = [String(column.low), String(column.high)];
      state.range = null;
    } else state.range = /** @type {[number, number]} */ (wanted);
    changed();
  };
  return [ramp, el("span", { class: "ends" }, from, el("span", { class: "soft" }, column.unit ?? ""), to)];
}

/**
 * Return the filters by number and region.
 *
 * @param {Context} context
 * @param {{draw: () => void, view: () => void}} region  begin to draw one; take the view
 * @returns {HTMLElement}
 */
export function filterPanel(context, region) {
  const { slide, state, changed } = context;
  const numbers = (slide.nuclei?.columns ?? []).filter(({ kind }) => kind === "number");
  const usual = numbers.filter(({ name }) => /^area/i.test(name)).slice(0, 1).map(({ name }) => name);
  const rows = el("div", { class: "ranges" });
  const more = el("select", { "aria-label": "Filter by another number", onchange: () => add() });
  const confidence = el("output", {}, percent(state.minProb));
  const slider = el("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    value: state.minProb,
    "aria-label": "Least confidence",
    oninput: () => {
      state.minProb = Number(slider.value);
      confidence.textContent = percent(state.minProb);
      changed();
    },
  });
  const add = () => {
    state.ranges[more.value] = [null, null];
    show();
    rows.lastElementChild?.querySelector("input")?.focus();
  };
  const show = () => {
    const shown = [...new Set([...usual, ...Object.keys(state.ranges)])];
    rows.replaceChildren(...numbers.filter(({ name }) => shown.includes(name)).map((column) => rangeRow(column, context)));
    const rest = numbers.filter(({ name }) => !shown.includes(name));
    more.replaceChildren(el("option", { value: "" }, "Another number…"), ...rest.map(({ name, label }) => el("option", { value: name }, label)));
    more.hidden = !rest.length;
  };
  const clear = el(
    "button",
    {
      type: "button",
      onclick: () => {
        Object.assign(state, { minProb: 0, ranges: {}, region: null, hidden: [] });
        slider.value = "0";
        confidence.textContent = percent(0);
        show();
        changed();
      },
    },
    "Clear all",
  );
  show();
  if (isStatic) return section("Filter", false, el("p", { class: "soft" }, "A share shows and hides types; `cellvit view` filters by everything."));
  return section(
    "Filter",
    true,
    el("label", { class: "named" }, el("span", {}, "Confidence ≥"), el("span", { class: "sliding" }, slider, confidence)),
    rows,
    more,
    el(
      "div",
      { class: "row" },
      el("button", { type: "button", title: "Draw a rectangle; with Shift any form", onclick: region.draw }, "Draw a region"),
      el("button", { type: "button", onclick: region.view }, "What is in view"),
      clear,
    ),
  );
}

/**
 * Return the two ends of a filter.
 *
 * @param {Column} column
 * @param {Context} context
 * @returns {HTMLElement}
 */
function rangeRow(column, { state, changed }) {
  const [low, high] = state.ranges[column.name] ?? [null, null];
  /** @param {number | null} value @param {number} limit @param {string} name */
  const end = (value, limit, name) =>
    el("input", {
      type: "number",
      step: "any",
      value: value ?? "",
      placeholder: formatValue(limit),
      "aria-label": `${column.label}, ${name}`,
      onchange: () => {
        const read = [from, to].map((input) => (input.value === "" ? null : Number(input.value)));
        if (read[0] === null && read[1] === null) delete state.ranges[column.name];
        else state.ranges[column.name] = /** @type {[number | null, number | null]} */ (read);
        changed();
      },
    });
  const from = end(low, column.min, "at least");
  const to = end(high, column.max, "at most");
  const title = column.unit ? `${column.label} (${column.unit})` : column.label;
  return el("fieldset", { class: "range" }, el("legend", {}, title), from, el("span", { "aria-hidden": "true" }, "–"), to);
}

/**
 * Return a share as text.
 *
 * @param {number} share
 * @returns {string}
 */
export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/**
 * Return the choice of layers.
 *
 * @param {Context} context
 * @returns {HTMLElement}
 */
export function layerPanel({ slide, state, changed }) {
  const layers = [
    { name: "image", label: "Image", there: slide.image !== null },
    { name: "nuclei", label: "Nuclei", there: slide.nuclei !== null },
    ...slide.layers.map(({ name, label }) => ({ name, label, there: true })),
  ];
  const rows = layers
    .filter(({ there }) => there)
    .map(({ name, label }) => {
      const box = el("input", {
        type: "checkbox",
        "data-layer": name,
        checked: !state.off.includes(name),
        onchange: () => {
          state.off = box.checked ? state.off.filter((other) => other !== name) : [...state.off, name];
          changed();
        },
      });
      return el("li", {}, el("label", {}, box, label));
    });
  const note = slide.image?.note;
  return section("Layers", true, el("ul", { class: "layers" }, ...rows), note ? el("p", { class: "soft" }, note) : null);
}

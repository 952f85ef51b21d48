// @ts-check
/** Labels: classes of one's own, nuclei given to them, undo, and the classifier that learns from them. */
import { getJson, postJson, slidePath } from "./api.js";
import { el, formatCount, swatch } from "./dom.js";
import { section } from "./panel.js";
import { filterOf, typeFilter } from "./state.js";
import { toast, toastError } from "./toast.js";

/** @typedef {import("./types.js").LabelClass} LabelClass */
/** @typedef {import("./types.js").Point} Point */
/** @typedef {import("./types.js").Suggestion} Suggestion */

/**
 * @typedef {object} LabelEvents
 * @property {(labels: Map<number, string>, classes: LabelClass[]) => void} shown  other labels are to be drawn
 * @property {() => Promise<void>} reloaded  the slide's types changed
 * @property {(suggestion: Suggestion) => void} suggested
 * @property {() => void} lasso  take the lasso
 */

/**
 * Return the colour that a new class gets: the first of the palette that none has.
 *
 * @param {string[]} palette
 * @param {LabelClass[]} classes
 * @returns {string}
 */
export function nextColor(palette, classes) {
  const used = new Set(classes.map(({ color }) => color.toLowerCase()));
  return palette.find((color) => !used.has(color.toLowerCase())) ?? palette[classes.length % Math.max(1, palette.length)] ?? "#808080";
}

/** The part of the panel for labels. */
export class LabelsPanel {
  /**
   * @param {import("./panel.js").Context} context
   * @param {LabelEvents} events
   */
  constructor(context, events) {
    const { slide } = context;
    this.context = context;
    this.events = events;
    this.classes = slide.labels.classes;
    /** @type {Map<number, string>} */
    this.labels = new Map();
    /** @type {string | null} */
    this.current = this.classes[0]?.name ?? null;
    this.canUndo = false;
    /** @type {Suggestion[]} */
    this.suggestions = [];
    /** @type {Set<number>} rows that "next" has shown */
    this.visited = new Set();
    this.busy = false;
    this.list = el("ul", { class: "labelclasses", role: "radiogroup", "aria-label": "Class that is given" });
    this.status = el("p", { class: "soft", role: "status" });
    this.makeControls();
    this.node = section("Labels", true, ...this.parts());
    this.fill();
  }

  get editable() {
    return this.context.slide.labels.editable;
  }

  /** Return the colours of new classes. */
  get palette() {
    const { labels, nuclei } = this.context.slide;
    return labels.palette?.length ? labels.palette : (nuclei?.classes ?? []).map(({ color }) => color);
  }

  /** Make the buttons and the form of a new class. */
  makeControls() {
    /** @param {string} text @param {string} title @param {() => void} action */
    const button = (text, title, action) => el("button", { type: "button", title, onclick: action }, text);
    this.undoButton = button("Undo", "Take the last change back (U)", () => void this.undo());
    this.lassoButton = button("Lasso", "Label all nuclei inside of a line (L)", () => this.events.lasso());
    this.nextButton = button("Next", "Go to the nucleus whose label would teach most (N)", () => void this.next());
    this.trainButton = button("Train", "Train a classifier from the labels (T)", () => void this.train());
    this.applyButton = button("Apply", "Give all nuclei the types of the classifier (A)", () => void this.apply());
    this.newName = el("input", { type: "text", placeholder: "New class", "aria-label": "Name of a new class", maxlength: 60 });
    this.newColor = el("input", { type: "color", "aria-label": "Colour of the new class" });
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      void this.addClass();
    };
    this.form = el("form", { class: "newclass", onsubmit: submit }, this.newColor, this.newName, el("button", {}, "Add"));
  }

  /** Return what the part holds. */
  parts() {
    const { labels, id } = this.context.slide;
    if (!labels.editable) return [el("p", { class: "soft" }, labels.reason ?? "Labels cannot be changed here."), this.list];
    const { undoButton, lassoButton, nextButton, trainButton, applyButton, form } = this;
    const file = el("a", { href: slidePath(id, "labels.geojson"), download: "labels.geojson" }, "For QuPath");
    const hint = el("p", { class: "soft" }, "Choose a class, then click nuclei with the label tool, or draw around them.");
    return [
      this.list,
      .../** @type {Node[]} */ ([form]),
      hint,
      el("div", { class: "row" }, /** @type {Node} */ (lassoButton), /** @type {Node} */ (undoButton), file),
      el("div", { class: "row" }, /** @type {Node} */ (nextButton), /** @type {Node} */ (trainButton), /** @type {Node} */ (applyButton)),
      this.status,
    ];
  }

  /** Make the list of classes anew. */
  fill() {
    const held = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.label : undefined;
    this.list.replaceChildren(...this.classes.map((entry, i) => this.row(entry, i)));
    if (!this.classes.length) this.list.append(el("li", { class: "empty" }, this.editable ? "Name a class to begin." : "There are no labels."));
    if (held !== undefined) this.button(held)?.focus();
    if (this.newColor) this.newColor.value = nextColor(this.palette, this.classes);
    const total = this.classes.reduce((sum, { count }) => sum + count, 0);
    const { undoButton, lassoButton, nextButton, trainButton, applyButton } = this;
    const { slide } = this.context;
    if (undoButton) undoButton.disabled = !this.canUndo;
    if (lassoButton) lassoButton.disabled = this.current === null;
    if (trainButton) trainButton.disabled = this.busy || total === 0;
    if (applyButton) applyButton.disabled = this.busy || !slide.classifier;
    if (nextButton) nextButton.disabled = slide.suggestions === 0;
  }

  /**
   * Return the button of a class.
   *
   * @param {string} name
   * @returns {HTMLElement | undefined}
   */
  button(name) {
    return [.../** @type {NodeListOf<HTMLElement>} */ (this.list.querySelectorAll("[data-label]"))].find((node) => node.dataset.label === name);
  }

  /**
   * Return the row of a class.
   *
   * @param {LabelClass} entry
   * @param {number} index
   * @returns {HTMLElement}
   */
  row(entry, index) {
    const { name, color, count } = entry;
    const chosen = name === this.current;
    const choose = el(
      "button",
      {
        type: "button",
        role: "radio",
        "aria-checked": String(chosen),
        class: "labelclass",
        "data-label": name,
        disabled: !this.editable,
        onclick: () => this.choose(name),
      },
      index < 9 ? el("kbd", {}, String(index + 1)) : null,
      swatch(color),
      el("span", { class: "name" }, name),
      el("span", { class: "number" }, formatCount(count)),
    );
    const edit = el("button", { type: "button", class: "plain", title: "Change this class", "aria-label": `Change class ${name}`, onclick: () => this.edit(entry) }, "✎");
    return el("li", {}, choose, this.editable ? edit : null);
  }

  /**
   * Put a form in the place of a class: name, colour, remove.
   *
   * @param {LabelClass} entry
   */
  edit(entry) {
    const name = el("input", { type: "text", value: entry.name, "aria-label": "Name", maxlength: 60 });
    const color = el("input", { type: "color", value: entry.color, "aria-label": "Colour" });
    const save = async (/** @type {Event} */ event) => {
      event.preventDefault();
      const wanted = name.value.trim() || entry.name;
      if (color.value !== entry.color) await this.change("classes", { name: entry.name, color: color.value });
      if (wanted !== entry.name) {
        await this.change("classes", { rename: entry.name, to: wanted });
        if (this.current === entry.name) this.current = wanted;
      }
      this.fill();
    };
    const remove = async () => {
      await this.change("classes", { remove: entry.name });
      if (this.current === entry.name) this.current = this.classes[0]?.name ?? null;
      this.fill();
    };
    const gone = el("button", { type: "button", title: "Remove this class and its labels", onclick: () => void remove() }, "Remove");
    const form = el("form", { class: "newclass", onsubmit: save }, color, name, el("button", {}, "Save"), gone);
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.fill();
    });
    this.button(entry.name)?.parentElement?.replaceChildren(form);
    name.focus();
    name.select();
  }

  /**
   * Choose the class that is given.
   *
   * @param {string} name
   */
  choose(name) {
    this.current = name;
    this.fill();
    this.status.textContent = `Class: ${name}`;
  }

  /** Add the class that the form tells. */
  async addClass() {
    const name = this.newName?.value.trim() ?? "";
    if (!name || !this.newName || !this.newColor) return;
    const known = this.classes.some((entry) => entry.name === name); // that one is chosen, and keeps its colour
    if (!known && !(await this.change("classes", { name, color: this.newColor.value }))) return;
    this.newName.value = "";
    this.current = name;
    this.fill();
  }

  /** Ask for all labels and show them. */
  async load() {
    try {
      const { classes, labels, can_undo: canUndo } = await getJson(slidePath(this.context.slide.id, "labels"));
      this.classes = classes;
      this.canUndo = canUndo;
      this.current = this.classes.some(({ name }) => name === this.current) ? this.current : this.classes[0]?.name ?? null;
      this.labels = new Map(labels.map((/** @type {import("./types.js").Label} */ label) => [label.row, label.class]));
      this.fill();
      this.events.shown(this.labels, this.classes);
    } catch (error) {
      toastError(error);
    }
  }

  /**
   * Send a change of labels and show what came of it.
   *
   * @param {string} what  the end of the address; "" for labels themselves
   * @param {object} data
   * @returns {Promise<{changed: number} | null>}  null if the server refused
   */
  async change(what, data) {
    const { slide } = this.context;
    let answer = null;
    try {
      answer = await postJson(slidePath(slide.id, what ? `labels/${what}` : "labels"), data);
      slide.labels.count = answer.count;
    } catch (error) {
      toastError(error);
    }
    await this.load(); // also after a refusal: somebody else may have changed them
    return answer;
  }

  /**
   * Give nuclei the chosen class.
   *
   * @param {number[]} rows
   * @param {string | null} [name]  null takes labels away
   */
  async give(rows, name = this.current) {
    if (!this.editable) toast(this.context.slide.labels.reason ?? "Labels cannot be changed here.");
    else if (name === null && this.current === null) toast("There is no class to give", "Name one under Labels");
    else await this.change("", { class: name, rows });
  }

  /**
   * Give all nuclei inside of a polygon the chosen class; those that filters hide stay as they are.
   *
   * @param {Point[]} polygon
   */
  async giveInside(polygon) {
    const { slide, state } = this.context;
    if (!this.editable || this.current === null) {
      await this.give([]);
      return;
    }
    const filter = { ...filterOf(state), ...typeFilter(state, slide.nuclei?.classes ?? []) };
    const done = await this.change("", { class: this.current, polygon, filter });
    if (done) this.status.textContent = `${formatCount(done.changed)} nuclei are now ${this.current}`;
  }

  /** Take the last change back. */
  async undo() {
    if (!this.editable || !this.canUndo) return;
    const done = await this.change("undo", {});
    if (done) this.status.textContent = `${formatCount(done.changed)} labels are as before`;
  }

  /** Go to the next suggested nucleus that has no label yet. */
  async next() {
    try {
      if (!this.suggestions.length) {
        this.suggestions = (await getJson(slidePath(this.context.slide.id, "suggestions"))).rows;
        this.visited.clear();
      }
    } catch (error) {
      toastError(error);
      return;
    }
    const next = this.suggestions.find(({ row }) => !this.visited.has(row) && !this.labels.has(row));
    if (!next) {
      toast("All suggested nuclei have been shown", "Train again to get others", "done");
      this.suggestions = [];
      return;
    }
    this.visited.add(next.row);
    this.status.textContent = next.why;
    this.events.suggested(next);
  }

  /** Train a classifier from the labels of all slides. */
  async train() {
    if (this.busy) return;
    const done = await this.work("api/train", {});
    if (!done) return;
    toast("The classifier is trained", "Apply gives all nuclei its types", "done");
    await this.events.reloaded();
  }

  /** Give the nuclei of this slide the types of the classifier. */
  async apply() {
    const { slide } = this.context;
    if (this.busy || !slide.classifier) return;
    const done = await this.work("api/apply", { slides: [slide.id] });
    if (!done) return;
    toast("The nuclei have new types", "", "done");
    await this.events.reloaded();
  }

  /**
   * Start work on the server and wait for its end.
   *
   * @param {string} path
   * @param {object} data
   * @returns {Promise<boolean>}  whether it went well
   */
  async work(path, data) {
    this.busy = true;
    this.fill();
    let job = null;
    try {
      ({ job } = await postJson(path, data));
      let answer = await getJson(`api/jobs/${encodeURIComponent(job)}`);
      while (answer.state === "running") {
        this.status.textContent = answer.text;
        await new Promise((resolve) => setTimeout(resolve, 500));
        answer = await getJson(`api/jobs/${encodeURIComponent(job)}`);
      }
      this.status.replaceChildren(answer.text);
      if (answer.report) this.status.append(" ", el("a", { href: answer.report, target: "_blank", rel: "noopener" }, "Report"));
      if (answer.state === "failed") toast(answer.text);
      return answer.state === "done";
    } catch (error) {
      toastError(error);
      return false;
    } finally {
      this.busy = false;
      this.fill();
    }
  }

  /** Take over what the slide now says of labels and the classifier. */
  refresh() {
    this.suggestions = [];
    this.fill();
  }
}

// @ts-check
/** The page of one slide: the view, the panel beside it, and what connects them. */
import { getJson, isStatic, slidePath } from "./api.js";
import { warningList } from "./cohort.js";
import { byId, debounce, el, formatCount } from "./dom.js";
import { fillHelp, toggleHelp } from "./keys.js";
import { LabelsPanel } from "./labels-panel.js";
import { NucleusPanel } from "./nucleus-panel.js";
import { TypePanel, colorPanel, filterPanel, layerPanel } from "./panel.js";
import { SlideView, TOOLS } from "./slide-view.js";
import { encodeState, filterOf, freshState, typeFilter } from "./state.js";
import { switchTheme } from "./theme.js";
import { toast, toastError } from "./toast.js";

/** @typedef {import("./types.js").Slide} Slide */
/** @typedef {import("./types.js").Point} Point */
/** @typedef {import("./types.js").Nucleus} Nucleus */

/** What is said of how nuclei are drawn. */
const DRAWN_AS = {
  density: "Shown as density: each square has the colour of one of its nuclei. Zoom in for single ones.",
  points: "Shown as points.",
  outlines: "Shown as outlines.",
};

const TOOL_TEXTS = {
  move: { text: "Move", key: "V", title: "Drag moves, a click tells of a nucleus" },
  label: { text: "Label", key: "B", title: "A click gives the chosen class" },
  lasso: { text: "Lasso", key: "L", title: "Draw around nuclei to label them" },
  region: { text: "Region", key: "F", title: "Draw a rectangle, with Shift any form, and see what is inside only" },
};

/** One slide on the page. */
export class SlidePage {
  /**
   * @param {Slide} slide
   * @param {import("./state.js").ViewState} state
   */
  constructor(slide, state) {
    this.slide = slide;
    this.state = state;
    this.tool = "move";
    /** @type {AbortController | null} */
    this.counting = null;
    this.gone = false;
    /** @type {Promise<Nucleus | null> | null} */
    this.picking = null;
    this.remember = debounce(() => this.gone || this.keepAddress(), 200);
    this.count = debounce(() => this.gone || this.countView(), 150);
    this.renew = debounce(() => this.gone || this.reload(), 500);
    this.refilter = debounce(() => this.gone || this.view.update(), 120);
    this.context = { slide, state, changed: () => this.changed() };
    byId("viewer").hidden = false; // OpenSeadragon needs its place to have a size
    this.view = new SlideView(byId("picture"), slide, state, {
      moved: () => {
        this.remember();
        this.count();
        this.sayHowDrawn();
      },
      picked: (point, radius) => void this.picked(point, radius),
      drawn: (polygon) => void this.drawn(polygon),
      failed: (error) => this.failed(error),
    });
    this.types = new TypePanel(this.context);
    this.nucleus = new NucleusPanel(slide, {
      selected: (nucleus) => this.view.select(nucleus?.outline ?? null),
      go: (x, y) => this.view.goTo(x, y),
    });
    this.labels = new LabelsPanel(this.context, {
      shown: (labels, classes) => this.gone || this.view.nuclei.setLabels(labels, classes),
      reloaded: () => this.reload(),
      suggested: ({ row, x, y }) => {
        this.view.goTo(x, y);
        this.picking = this.nucleus.showRow(row);
      },
      lasso: () => this.setTool("lasso"),
    });
    this.commands = this.makeCommands();
    fillHelp(this.commands);
    this.makeTools();
    this.fillPanel();
    this.setTool("move");
    this.view.select(null);
    if (!isStatic && slide.nuclei) void this.labels.load();
  }

  /** Fill the panel beside the picture. */
  fillPanel() {
    const region = { draw: () => this.setTool("region"), view: () => this.setRegion(this.view.corners) };
    const { error, warnings, labels, image, image_note: imageNote } = this.slide;
    const notes = [error, image ? null : imageNote, ...warnings, labels.note].filter((text) => typeof text === "string" && text !== "");
    const parts = [warningList(/** @type {string[]} */ (notes)), this.nucleus.node, this.types.node];
    if (this.slide.nuclei) parts.push(colorPanel(this.context), filterPanel(this.context, region));
    parts.push(layerPanel(this.context));
    if (this.slide.nuclei && !isStatic) parts.push(this.labels.node);
    byId("side").replaceChildren(...parts.filter((part) => part !== null));
    this.sayHowDrawn();
  }

  /** Make the buttons of the tools and of the view. */
  makeTools() {
    const tools = TOOLS.filter((tool) => tool === "move" || !isStatic).map((tool) => {
      const { text, key, title } = TOOL_TEXTS[/** @type {"move"} */ (tool)];
      return el("button", { type: "button", "data-tool": tool, "aria-pressed": "false", title: `${title} (${key})`, onclick: () => this.setTool(tool) }, text);
    });
    /** @param {string} text @param {string} title @param {() => void} action */
    const button = (text, title, action) => el("button", { type: "button", class: "plain", title, "aria-label": title, onclick: action }, text);
    const place = byId("tools");
    place.hidden = false;
    place.replaceChildren(
      el("span", { class: "group" }, ...(this.slide.nuclei ? tools : [])),
      el(
        "span",
        { class: "group" },
        button("−", "Zoom out (−)", () => this.view.zoomBy(0.7)),
        button("+", "Zoom in (+)", () => this.view.zoomBy(1.4)),
        button("⟲", "Turn (R)", () => this.view.rotateBy(-15)),
        button("⤢", "Whole slide (0)", () => this.view.home()),
      ),
    );
  }

  /**
   * Return the keys and what they do.
   *
   * @returns {import("./keys.js").Command[]}
   */
  makeCommands() {
    const { view } = this;
    /** @type {(keys: string, shown: string, text: string, run: () => void) => import("./keys.js").Command} */
    const command = (keys, shown, text, run) => ({ keys: keys.split(" "), shown, text, run });
    const step = 0.15;
    const commands = [
      command("ArrowLeft", "←", "Move left", () => view.panBy(-step, 0)),
      command("ArrowRight", "→", "Move right", () => view.panBy(step, 0)),
      command("ArrowUp", "↑", "Move up", () => view.panBy(0, -step)),
      command("ArrowDown", "↓", "Move down", () => view.panBy(0, step)),
      command("+ =", "+", "Zoom in", () => view.zoomBy(1.4)),
      command("- _", "−", "Zoom out", () => view.zoomBy(1 / 1.4)),
      command("0", "0", "Whole slide, upright", () => view.home()),
      command("r", "R", "Turn right", () => view.rotateBy(15)),
      command("Shift+r", "Shift R", "Turn left", () => view.rotateBy(-15)),
      command("Enter", "Enter", "Pick the nucleus in the middle", () => void this.pickMiddle()),
      command("Escape", "Esc", "Let go of what is selected or drawn", () => this.letGo()),
      command("c", "C", "Next way to colour", () => this.nextColoring()),
      command("[", "[", "Nuclei fainter", () => this.setOpacity(-0.1)),
      command("]", "]", "Nuclei stronger", () => this.setOpacity(0.1)),
      command("h", "H", "Hide or show the nuclei", () => this.toggleLayer("nuclei")),
      command("i", "I", "Hide or show the image", () => this.toggleLayer("image")),
      command("d", "D", "Dark or light", switchTheme),
      command("?", "?", "These keys", toggleHelp),
    ];
    if (isStatic || !this.slide.nuclei) return commands;
    const { labels } = this;
    const tools = TOOLS.map((tool) => {
      const { key, title } = TOOL_TEXTS[/** @type {"move"} */ (tool)];
      return command(key.toLowerCase(), key, title, () => this.setTool(tool));
    });
    const classes = Array.from({ length: 9 }, (_, i) => command(String(i + 1), String(i + 1), "", () => this.giveClass(i)));
    classes[0] = { ...classes[0], shown: "1 … 9", text: "Choose a class, and give it to the picked nucleus" };
    const work = [
      command("Backspace Delete", "⌫", "Take the label of the picked nucleus away", () => this.giveSelected(null)),
      command("Shift+l", "Shift L", "Label everything in view", () => void labels.giveInside(view.corners)),
      command("Shift+f", "Shift F", "See only what is in view now", () => this.setRegion(view.corners)),
      command("u Ctrl+z", "U", "Undo", () => void labels.undo()),
      command("n", "N", "Next suggested nucleus", () => void labels.next()),
      command("t", "T", "Train", () => void labels.train()),
      command("a", "A", "Apply", () => void labels.apply()),
    ];
    return [...commands, ...tools, ...classes, ...work];
  }

  /** Say whether density, points or outlines are on the screen. */
  sayHowDrawn() {
    const place = document.getElementById("drawnas");
    if (place) place.textContent = DRAWN_AS[this.view.nuclei.kind];
  }

  /**
   * Tell of an error; of a table that was written anew the new state is shown instead.
   *
   * @param {unknown} error
   */
  failed(error) {
    if (/** @type {{status?: number}} */ (error).status === 409) this.renew();
    else toastError(error);
  }

  /** Show what the state now says, and keep it in the address. */
  changed() {
    this.refilter();
    this.view.select(this.nucleus.nucleus?.outline ?? null);
    this.remember();
    this.count();
  }

  /** Put the state into the address. */
  keepAddress() {
    history.replaceState(null, "", `#${encodeState(this.state)}`);
  }

  /** Show how many nuclei of each type are in view. */
  async countView() {
    const { nuclei } = this.slide;
    if (!nuclei) return;
    this.counting?.abort();
    this.counting = new AbortController();
    if (isStatic) {
      this.showCounts(this.view.nuclei.count(this.view.screen));
      return;
    }
    const query = new URLSearchParams({ ...filterOf(this.state), ...typeFilter(this.state, nuclei.classes) });
    const turned = this.state.rotation % 90 !== 0 && !this.state.region;
    if (turned) query.set("polygon", this.view.corners.map((point) => point.map((value) => value.toFixed(1))).join(","));
    else query.set("box", this.view.box.map((value) => value.toFixed(1)).join(","));
    query.set("revision", String(this.slide.revision));
    try {
      this.showCounts(await getJson(slidePath(this.slide.id, "counts"), query, this.counting.signal));
    } catch (error) {
      toastError(error);
    }
  }

  /** @param {{total: number, classes: Record<string, number>}} counts */
  showCounts(counts) {
    this.types.setCounts(counts);
    byId("summary").textContent = `${formatCount(counts.total)} in view`;
  }

  /**
   * Do what a click on the picture means.
   *
   * @param {Point} point
   * @param {number} radius
   */
  async picked(point, radius) {
    if (!this.slide.nuclei) return;
    const nearest = this.view.nuclei.nearest(point[0], point[1], Math.max(radius, 4 / (this.slide.mpp?.[0] ?? 0.25)));
    const name = this.labels.current; // at the click, not when the answer comes
    this.picking = this.nucleus.pick(point, radius, nearest);
    const nucleus = await this.picking;
    if (this.tool !== "label") return;
    if (nucleus) await this.giveSelected(name, nucleus);
    else this.labels.status.textContent = "There is no nucleus at that place";
  }

  /** Pick the nucleus in the middle of the view. */
  async pickMiddle() {
    await this.picked(this.view.middle, 40 / (this.view.screen.width ? Math.hypot(this.view.screen.map.a, this.view.screen.map.b) : 1));
  }

  /**
   * Give the picked nucleus a class.
   *
   * @param {string | null} name  null takes its label away
   * @param {Nucleus | null} [picked]  another one than that which is shown
   */
  async giveSelected(name, picked = null) {
    if (!picked) await this.picking; // the one clicked last, not the one shown until its facts come
    const nucleus = picked ?? this.nucleus.nucleus;
    if (!nucleus) return;
    await this.labels.give([nucleus.row], name);
    if (this.nucleus.nucleus?.row === nucleus.row) this.nucleus.show({ ...nucleus, label: this.labels.labels.get(nucleus.row) ?? null });
  }

  /**
   * Choose a class by its number, and give it to the picked nucleus.
   *
   * @param {number} index
   */
  giveClass(index) {
    const entry = this.labels.classes[index];
    if (!entry) return;
    this.labels.choose(entry.name);
    if (this.tool !== "label") void this.giveSelected(entry.name); // there it is for the next click
  }

  /**
   * Do what a line that was drawn means.
   *
   * @param {Point[]} polygon
   */
  async drawn(polygon) {
    if (this.tool === "lasso") await this.labels.giveInside(polygon);
    else this.setRegion(polygon);
  }

  /** @param {Point[]} polygon */
  setRegion(polygon) {
    this.state.region = polygon;
    if (this.tool === "region") this.setTool("move");
    this.changed();
  }

  /** @param {string} tool */
  setTool(tool) {
    this.tool = tool;
    this.view.setTool(tool);
    for (const button of byId("tools").querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.getAttribute("data-tool") === tool));
    }
    const labelling = tool === "label" || tool === "lasso";
    if (labelling) this.labels.node.scrollIntoView({ block: "nearest" });
    if (labelling && this.labels.current === null) toast("There is no class to give yet", "Name one under Labels");
  }

  /** Let go: of the tool, then of the picked nucleus. */
  letGo() {
    if (this.tool !== "move") this.setTool("move");
    else this.nucleus.show(null);
  }

  /** @param {number} step */
  setOpacity(step) {
    this.state.opacity = Math.round(10 * Math.min(1, Math.max(0.1, this.state.opacity + step))) / 10;
    this.fillPanel();
    this.changed();
  }

  /** @param {string} name */
  toggleLayer(name) {
    const { off } = this.state;
    this.state.off = off.includes(name) ? off.filter((other) => other !== name) : [...off, name];
    this.fillPanel();
    this.changed();
  }

  /** Colour by the next column. */
  nextColoring() {
    const names = ["", ...(this.slide.nuclei?.columns ?? []).map(({ name }) => name)];
    this.state.color = names[(names.indexOf(this.state.color) + 1) % names.length];
    this.state.range = null;
    this.fillPanel();
    this.changed();
  }

  /**
   * Show another state of the same slide: an address was opened.
   *
   * @param {import("./state.js").ViewState} state
   */
  setState(state) {
    Object.assign(this.state, freshState(), state);
    this.types.fill();
    this.fillPanel();
    this.view.goToState();
    this.changed();
  }

  /** Take over what the server now says of the slide; nothing is loaded anew but what changed. */
  async reload() {
    try {
      const facts = await getJson(slidePath(this.slide.id));
      if (this.gone) return; // the panel is another slide's by now
      Object.assign(this.slide, facts);
    } catch (error) {
      toastError(error);
      return;
    }
    const known = new Set(this.slide.nuclei?.classes.map(({ id }) => id));
    this.state.hidden = this.state.hidden.filter((id) => known.has(id));
    this.labels.refresh();
    this.types.fill();
    this.fillPanel();
    this.view.nuclei.refresh();
    this.changed();
    if (this.nucleus.nucleus) void this.nucleus.showRow(this.nucleus.nucleus.row); // its type may be another one
    if (!isStatic && this.slide.nuclei) await this.labels.load();
  }

  /** Free everything. */
  destroy() {
    this.gone = true;
    this.counting?.abort();
    this.view.destroy();
    byId("side").replaceChildren();
    byId("tools").hidden = true;
    byId("viewer").hidden = true;
  }
}

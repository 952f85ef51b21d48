// @ts-check
/** Start: the list of slides, or the slide that the address names. */
import { connection, getJson, slidePath } from "./api.js";
import { showCohort } from "./cohort.js";
import { byId, el } from "./dom.js";
import { commandOf, fillHelp, ownsKeys, toggleHelp } from "./keys.js";
import { SlidePage } from "./slide-page.js";
import { decodeState } from "./state.js";
import { applyTheme, switchTheme } from "./theme.js";
import { toast, toastError } from "./toast.js";

/** @type {SlidePage | null} */
let page = null;
/** How often something else was asked to be shown; an answer that comes too late is dropped. */
let shows = 0;

/** Keys of the list of slides. */
const LIST_COMMANDS = [
  { keys: ["?"], shown: "?", text: "These keys", run: toggleHelp },
  { keys: ["d"], shown: "D", text: "Dark or light", run: switchTheme },
  { keys: ["/"], shown: "/", text: "Find a slide", run: () => byId("cohort").querySelector("input")?.focus() },
];

/**
 * Show what an address names.
 *
 * @param {string} [hash]  the page's own if not given
 */
async function show(hash = location.hash) {
  const turn = ++shows;
  const state = decodeState(hash.slice(1));
  if (page && page.slide.id === state.slide) {
    page.setState(state);
    return;
  }
  page?.destroy();
  page = null;
  for (const id of ["cohort", "viewer", "sidebutton"]) byId(id).hidden = true;
  try {
    /** @type {import("./types.js").Cohort} */
    const cohort = await getJson("api/slides");
    const { slides } = cohort;
    const id = state.slide ?? (slides.length === 1 ? slides[0].id : null);
    byId("back").hidden = id === null || slides.length < 2;
    if (id === null) {
      if (turn !== shows) return;
      showCohort(cohort);
      byId("cohort").hidden = false;
      fillHelp(LIST_COMMANDS);
      return;
    }
    byId("summary").textContent = "Opening…";
    const slide = await getJson(slidePath(id));
    if (turn !== shows) return;
    document.title = slide.name;
    byId("title").textContent = slide.name;
    byId("summary").textContent = "";
    checkScripts();
    checkContent(slide);
    byId("sidebutton").hidden = false;
    page = new SlidePage(slide, { ...state, slide: id });
  } catch (error) {
    if (turn === shows) showError(error);
  }
}

/** Throw if OpenSeadragon is not there. */
function checkScripts() {
  if (typeof OpenSeadragon !== "undefined") return;
  const hint = "Run `python -m cellvit.viewer.vendor` once (in a checkout: `make viewer`), then load the page again";
  throw Object.assign(new Error("The viewer lacks OpenSeadragon, which shows the image"), { hint });
}

/**
 * Throw if a slide has nothing to show: it is broken, or has gone with its nuclei.
 *
 * @param {import("./types.js").Slide} slide
 */
function checkContent(slide) {
  if (slide.width > 0 && slide.height > 0 && (slide.image || slide.nuclei)) return;
  const text = slide.error ?? slide.image_note ?? "There is neither an image nor nuclei";
  throw Object.assign(new Error(`${slide.name} cannot be shown`), { hint: text });
}

/**
 * Show an error in the place of the page.
 *
 * @param {unknown} error
 */
function showError(error) {
  const { message, hint } = /** @type {{message: string, hint?: string}} */ (error);
  byId("summary").textContent = "";
  byId("viewer").hidden = true;
  byId("cohort").hidden = false;
  const again = el("button", { type: "button", class: "main", onclick: () => void show() }, "Try again");
  const text = hint && hint !== "offline" ? el("p", { class: "hint" }, hint) : null;
  byId("cohort").replaceChildren(el("div", { class: "problem", role: "alert" }, el("h2", {}, message), text, again));
}

/**
 * Fold or unfold the panel.
 *
 * @param {boolean} [open]  the other way if not given
 */
function foldPanel(open = document.body.classList.contains("folded")) {
  document.body.classList.toggle("folded", !open);
  byId("sidebutton").setAttribute("aria-expanded", String(open));
}

/** Listen, and show the first thing. */
function start() {
  applyTheme();
  byId("theme").addEventListener("click", switchTheme);
  byId("helpbutton").addEventListener("click", toggleHelp);
  byId("sidebutton").addEventListener("click", () => foldPanel());
  foldPanel(matchMedia("(min-width: 901px)").matches);
  addEventListener("hashchange", ({ newURL }) => void show(new URL(newURL).hash));
  addEventListener("keydown", (event) => {
    if (ownsKeys(event.target, event.key)) return;
    const command = commandOf(page?.commands ?? LIST_COMMANDS, event);
    if (!command) return;
    event.preventDefault();
    command.run();
  });
  connection.addEventListener("offline", () => (byId("banner").hidden = false));
  connection.addEventListener("busy", () => toast("Outlines are put in order, once", "They show as soon as that is done", "done"));
  connection.addEventListener("online", () => {
    byId("banner").hidden = true;
    if (page) void page.reload();
    else void show();
  });
  addEventListener("unhandledrejection", (event) => toastError(event.reason));
  Object.assign(globalThis, { cellvitPage: () => page }); // for tests and the curious
  void show();
}

start();

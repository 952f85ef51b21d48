// @ts-check
/** Keys and what they do; the help shows the same list. */
import { byId, el } from "./dom.js";

/**
 * @typedef {object} Command
 * @property {string[]} keys  as the event names them; "Shift+" before, where it must be held
 * @property {string} shown  as the help names them
 * @property {string} text  what it does
 * @property {() => void} run
 */

/**
 * Return the command of a key event, or undefined.
 *
 * @param {Command[]} commands
 * @param {{key: string, shiftKey: boolean, ctrlKey: boolean, metaKey: boolean, altKey: boolean}} event
 * @returns {Command | undefined}
 */
export function commandOf(commands, event) {
  const { key, shiftKey, ctrlKey, metaKey, altKey } = event;
  const name = key.length === 1 ? key.toLowerCase() : key;
  const before = (ctrlKey || metaKey ? "Ctrl+" : "") + (altKey ? "Alt+" : "");
  const letter = /^[a-z]$/.test(name) || key.length > 1;
  const full = before + (shiftKey && letter ? "Shift+" : "") + name;
  return commands.find(({ keys }) => keys.includes(full));
}

/**
 * Return whether keys belong to an element: one types there, or chooses with arrows.
 *
 * @param {EventTarget | null} target
 * @param {string} key
 * @returns {boolean}
 */
export function ownsKeys(target, key) {
  if (!(target instanceof Element)) return false;
  if (target.matches("input:not([type=checkbox], [type=radio]), select, textarea, dialog *")) return true;
  const presses = key === "Enter" || key === " ";
  return target.matches("button, a, summary, input") && (presses || (target.matches("input") && key.startsWith("Arrow")));
}

/**
 * Fill the help with the commands.
 *
 * @param {Command[]} commands
 */
export function fillHelp(commands) {
  const rows = commands.filter(({ text }) => text).map(({ shown, text }) =>
    el("tr", {}, el("th", { scope: "row" }, ...shown.split(" ").map((key) => el("kbd", {}, key))), el("td", {}, text)),
  );
  const dialog = /** @type {HTMLDialogElement} */ (byId("help"));
  dialog.replaceChildren(
    el("h2", { id: "helptitle" }, "Keys"),
    el("div", { class: "keys" }, el("table", {}, el("tbody", {}, ...rows))),
    el(
      "p",
      { class: "soft" },
      "Drag to move, wheel or two fingers to zoom and turn, click a nucleus to see what is known of it. ",
      "The address holds the view: send it to show the same.",
    ),
    el("button", { type: "button", class: "main", onclick: () => dialog.close() }, "Close"),
  );
}

/** Open or close the help. */
export function toggleHelp() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("help"));
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

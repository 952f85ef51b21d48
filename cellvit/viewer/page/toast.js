// @ts-check
/** Short messages: what went wrong and what to do, or what was done. */
import { byId, el } from "./dom.js";

/**
 * Show a message for some seconds; an error stays until it is closed.
 *
 * @param {string} text
 * @param {string} [hint]
 * @param {"error" | "done"} [kind]
 */
export function toast(text, hint = "", kind = "error") {
  const place = byId("toasts");
  for (const old of [...place.children]) if (old.getAttribute("data-text") === text) old.remove();
  const note = el(
    "div",
    { class: `toast ${kind}`, "data-text": text, role: kind === "error" ? "alert" : "status" },
    el("p", {}, text),
    hint ? el("p", { class: "hint" }, hint) : null,
    el("button", { type: "button", class: "plain", "aria-label": "Close this message", onclick: () => note.remove() }, "×"),
  );
  place.append(note);
  while (place.children.length > 3) place.firstElementChild?.remove();
  if (kind === "done") setTimeout(() => note.remove(), 4000);
}

/**
 * Show an error that was thrown.
 *
 * @param {unknown} error
 */
export function toastError(error) {
  if (error instanceof DOMException && error.name === "AbortError") return; // we no longer wanted it
  const { message, hint } = /** @type {{message?: string, hint?: string}} */ (error);
  if (hint !== "offline") toast(message ?? String(error), hint ?? ""); // the banner tells that the server is gone
}

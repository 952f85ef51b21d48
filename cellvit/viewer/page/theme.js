// @ts-check
/** Dark or light: as the system says, or as was chosen. */

const KEY = "cellvit-theme";

/**
 * Return what was chosen before; null where nothing was or the browser keeps nothing.
 *
 * @returns {string | null}
 */
function chosenTheme() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Show the page as chosen. */
export function applyTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosenTheme() ?? (dark ? "dark" : "light");
}

/** Choose the other one. */
export function switchTheme() {
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = other;
  try {
    localStorage.setItem(KEY, other);
  } catch {
    // it holds until the page is loaded again
  }
}

// What the user has chosen, in localStorage; the API key only if they say so.

const SETTINGS = "pyvllama-settings";
const KEY = "pyvllama-key";
const THEME = "pyvllama-theme";

/** Options of a request that can be set; the ranges are the server's. */
export const OPTIONS = [
  { name: "temperature", label: "Temperature", min: 0, max: 100, step: "any", help: "0: always the likeliest token" },
  { name: "top_p", label: "Top-p", min: 0, max: 1, step: "any", help: "1: off" },
  { name: "top_k", label: "Top-k", min: 0, max: 2147483647, step: 1, help: "0: off" },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: "any", help: "0: off" },
  { name: "repeat_penalty", label: "Repeat penalty", min: 0.01, max: 100, step: "any", help: "1: off" },
  { name: "max_tokens", label: "Longest answer", min: 1, max: 2147483647, step: 1, help: "in tokens" },
  { name: "seed", label: "Seed", min: 0, max: 4294967294, step: 1, help: "same seed, same answer" },
];

export class Settings {
  /** Option name -> number; those that are not set are left to the server. */
  options = {};
  model = "";
  system = ""; // of new chats
  singleKeys = true; // "/" and "?"
  sidebar = true;
  key = "";
  rememberKey = false;

  constructor() {
    const stored = read(SETTINGS);
    for (const { name, min, max, step } of OPTIONS) {
      const value = stored.options?.[name];
      if (Number.isFinite(value) && value >= min && value <= max && (step !== 1 || Number.isInteger(value))) {
        this.options[name] = value;
      }
    }
    for (const name of ["model", "system"]) if (typeof stored[name] === "string") this[name] = stored[name];
    for (const name of ["singleKeys", "sidebar"]) if (typeof stored[name] === "boolean") this[name] = stored[name];
    const key = read(KEY);
    if (typeof key === "string") Object.assign(this, { key, rememberKey: true });
  }

  save() {
    const { options, model, system, singleKeys, sidebar } = this;
    write(SETTINGS, { options, model, system, singleKeys, sidebar });
    write(KEY, this.rememberKey && this.key ? this.key : null);
  }
}

const systemTheme = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now. */
export const isDark = () => (document.documentElement.dataset.theme ?? (systemTheme.matches ? "dark" : "light")) === "dark";

/** Switches between light and dark. What the system prefers anyway is not stored, so the page follows it again. */
export function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  const chosen = theme === (systemTheme.matches ? "dark" : "light") ? null : theme;
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  try {
    if (chosen) localStorage.setItem(THEME, chosen); // as it is: theme.js reads it before everything else
    else localStorage.removeItem(THEME);
  } catch {
    // It lasts as long as the page.
  }
}

/** Calls `run` when the system's choice changes. */
export const onSystemTheme = (run) => systemTheme.addEventListener("change", run);

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? {};
  } catch {
    return {};
  }
}

function write(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Storage is off or full: it lasts as long as the page.
  }
}

// Before the first paint, so that a dark page never flashes white. "light" or "dark" if chosen, else the system's.
"use strict";
try {
  const chosen = localStorage.getItem("pyvllama-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is off: the system's choice it is.
}

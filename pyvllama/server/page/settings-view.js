// The dialog of settings. What is chosen counts at once.

import { el } from "./dom.js";
import { openDialog } from "./notices.js";
import { OPTIONS } from "./settings.js";

/**
 * Opens the settings.
 * @param {Settings} settings
 * @param {Object} defaults the server's, by option name; shown where nothing is chosen
 * @param {{toKey: boolean, changed: function, closed: function}} how `toKey`: with the focus in the key's field
 */
export function openSettings(settings, defaults, { toKey = false, changed, closed }) {
  const save = () => {
    settings.save();
    changed();
  };
  const fields = OPTIONS.map((option) => numberField(option, settings, defaults, save));
  const reset = el("button", { type: "button", class: "quiet", onclick: () => (fields.forEach(({ clear }) => clear()), save()) }, "Back to the model's own");
  const key = keyFields(settings, save);
  const dialog = openDialog(
    "Settings",
    "settings",
    el("fieldset", {}, el("legend", {}, "Answers"), el("div", { class: "options" }, ...fields.map(({ element }) => element)), el("p", { class: "hint" }, "What is left empty, the model decides. "), reset),
    el("fieldset", {}, el("legend", {}, "New chats"), systemField(settings, save)),
    el("fieldset", {}, el("legend", {}, "Server"), ...key.elements),
    el("fieldset", {}, el("legend", {}, "Keyboard"), checkbox("Single keys: / to write, ? for help", settings.singleKeys, (isOn) => ((settings.singleKeys = isOn), save()))),
  );
  dialog.addEventListener("close", closed);
  if (toKey) key.focus();
}

/** A labelled number; what is out of range is said and does not count. */
function numberField({ name, label, min, max, step, help }, settings, defaults, save) {
  const id = `option-${name}`;
  const known = defaults[name];
  // llama.cpp says -1 where there is no limit or no fixed seed.
  const placeholder = Number.isFinite(known) && known >= min && known <= max ? String(Number(known.toFixed(4))) : name === "seed" ? "random" : "default";
  const input = el("input", { id, type: "number", min, max, step, placeholder, inputmode: "decimal", "aria-describedby": `${id}-help`, value: settings.options[name] ?? null });
  const hint = el("small", { id: `${id}-help` }, help);
  const show = () => {
    const isBad = !input.validity.valid;
    input.setAttribute("aria-invalid", String(isBad));
    hint.textContent = isBad ? `${step === 1 ? "a whole number, " : ""}${min} to ${max.toLocaleString("en")}` : help;
    hint.classList.toggle("bad", isBad);
    return !isBad;
  };
  input.addEventListener("input", () => {
    if (!show()) return;
    if (input.value === "") delete settings.options[name];
    else settings.options[name] = Number(input.value);
    save();
  });
  const clear = () => {
    input.value = "";
    delete settings.options[name];
    show();
  };
  return { element: el("div", {}, el("label", { for: id }, label), input, hint), clear };
}

function systemField(settings, save) {
  const area = el("textarea", { id: "default-system", rows: "3", placeholder: "None" });
  area.value = settings.system;
  area.addEventListener("input", () => ((settings.system = area.value), save()));
  return el("div", {}, el("label", { for: "default-system" }, "System prompt"), area);
}

function keyFields(settings, save) {
  const input = el("input", { id: "api-key", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "None", "aria-describedby": "api-key-help" });
  input.value = settings.key;
  input.addEventListener("input", () => ((settings.key = input.value.trim()), save()));
  const remember = checkbox("Remember the key in this browser", settings.rememberKey, (isOn) => ((settings.rememberKey = isOn), save()));
  const help = el("small", { id: "api-key-help" }, "Only if the server asks for one. Without the tick it is gone with the page.");
  return { elements: [el("div", {}, el("label", { for: "api-key" }, "API key"), input, help), remember], focus: () => input.focus() };
}

function checkbox(label, isOn, change) {
  const input = el("input", { type: "checkbox", onchange: () => change(input.checked) });
  input.checked = isOn;
  return el("label", { class: "check" }, input, label);
}

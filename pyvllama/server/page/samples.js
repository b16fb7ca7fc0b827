// Sample pictures with a question each, offered where the pocket model is served: it knows little else.

import { byId, el } from "./dom.js";

/**
 * Shows them in the welcome, or nothing for other models.
 * @param {string} model its name
 * @param {function(File, string)} ask called with the picture and the question of the chosen one
 */
export async function showSamples(model, ask) {
  const list = byId("samples");
  list.replaceChildren();
  list.dataset.model = model;
  if (!/^pocket-vllama/i.test(model)) return;
  const samples = await fetch("page/samples.json").then((response) => response.json()).catch(() => []);
  if (list.dataset.model !== model) return; // another was chosen meanwhile
  const items = samples.map(({ file, question }) => {
    const address = `page/samples/${encodeURIComponent(file)}`;
    const use = async () => {
      const blob = await (await fetch(address)).blob();
      ask(new File([blob], file, { type: blob.type }), question);
    };
    return el("li", {}, el("button", { type: "button", onclick: use }, el("img", { src: address, alt: "" }), el("span", {}, question)));
  });
  list.replaceChildren(...items);
}

// The dialog of export and import.

import { el } from "./dom.js";
import { notice, openDialog } from "./notices.js";
import { count } from "./timings.js";
import { addFromJson, download, fileName, toJson, toMarkdown } from "./transfer.js";

/**
 * @param {Chats} chats
 * @param {Object} chat the one that is looked at
 * @param {function} changed called when chats were added
 */
export function openTransfer(chats, chat, changed) {
  const all = chats.all();
  const begun = chat.messages.length > 0;
  const today = new Date().toISOString().slice(0, 10);
  const button = (label, hint, isOff, run) => el("li", {}, el("button", { type: "button", disabled: isOff, onclick: run }, el("span", {}, label), el("small", {}, hint)));
  const asJson = async (list, name) => download(await toJson(list, chats), `${name}.json`, "application/json");
  const picker = el("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "File with chats" });
  const dialog = openDialog(
    "Export and import",
    "transfer",
    el(
      "ul",
      {},
      button("This chat as Markdown", "To read, or to paste elsewhere; pictures by name", !begun, () => download(toMarkdown(chat, chats), `${fileName(chat)}.md`, "text/markdown")),
      button("This chat as JSON", "With its pictures; can be imported again", !begun, () => asJson([chat], fileName(chat))),
      button(`All ${count(all.length, "chat")} as JSON`, "A copy of everything that this browser keeps", !all.length, () => asJson(all, `pyvllama-chats-${today}`)),
      button("Import chats", "From a JSON file that was exported here", false, () => picker.click()),
    ),
    picker,
  );
  picker.addEventListener("change", async () => {
    try {
      const { nAdded, nKnown } = await addFromJson(await picker.files[0].text(), chats);
      notice(`${count(nAdded, "chat")} imported${nKnown ? `, ${nKnown} already here` : ""}.`);
      changed();
      dialog.close();
    } catch (error) {
      notice(error.message);
    }
    picker.value = "";
  });
}

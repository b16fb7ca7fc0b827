// Where a message is written: its text, its pictures, however they come.

import { noDraft } from "./chats.js";
import { byId, el, iconButton, later } from "./dom.js";
import { thumbnail } from "./message-view.js";
import { notice } from "./notices.js";
import { describe, fromAddress, fromFile } from "./pictures.js";

const MAX_HEIGHT = 280; // px of the text field
const touch = matchMedia("(pointer: coarse)"); // a finger's Enter begins a new line

export class Composer {
  #chat = null;
  #editing = null; // the message that is edited; the draft waits meanwhile
  #pictures = [];
  #reading = new Set(); // promises of pictures that are being read
  #saveDraft = later(() => this.#keepDraft(), 400);

  /**
   * @param {Chats} chats
   * @param {{send, stop, edit}} actions `send({text, pictures, editing})` answers whether it was taken; `edit(message)`
   *     hears which message is edited, null for none
   */
  constructor(chats, actions) {
    this.chats = chats;
    this.actions = actions;
    this.form = byId("composer");
    this.text = byId("composer-text");
    this.list = byId("attached");
    this.#listen();
  }

  /** Shows a chat's draft. */
  show(chat) {
    this.#saveDraft.now();
    this.#chat = chat;
    this.#leaveEdit();
    this.#fill(chat.draft);
  }

  /** The message that is edited, or null. */
  get editing() {
    return this.#editing;
  }

  get isEmpty() {
    return !this.text.value && !this.#pictures.length && !this.#reading.size;
  }

  edit(message) {
    this.#saveDraft.now();
    this.#editing = message;
    this.#fill(message);
    this.form.classList.add("editing");
    this.actions.edit(message);
    this.text.focus();
  }

  cancelEdit() {
    this.#leaveEdit();
    this.#fill(this.#chat.draft);
    this.text.focus();
  }

  /** Shows the button that stops, or the one that sends. */
  setBusy(isBusy) {
    const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
    byId("stop").hidden = !isBusy;
    byId("send").hidden = isBusy;
    if (hadFocus) this.text.focus();
  }

  /** Attaches pictures; what is none is named. */
  async addFiles(files) {
    const chat = this.#chat;
    await Promise.all(
      [...files].map(async (file) => {
        const reading = fromFile(file);
        this.#reading.add(reading);
        this.#showPictures();
        try {
          const picture = await reading;
          if (this.#chat === chat) this.#add(picture);
          else this.#addElsewhere(chat, picture);
        } catch (error) {
          notice(error.message);
        } finally {
          this.#reading.delete(reading);
          this.#showPictures();
        }
      }),
    );
  }

  addAddress(text) {
    try {
      this.#add(fromAddress(text));
      return true;
    } catch (error) {
      notice(error.message);
      return false;
    }
  }

  async send() {
    const chat = this.#chat;
    while (this.#reading.size) await Promise.allSettled([...this.#reading]);
    const [text, pictures, editing] = [this.text.value.trim(), this.#pictures, this.#editing];
    if (chat !== this.#chat || (!text && !pictures.length)) return;
    const { draft } = chat;
    if (!editing) chat.draft = noDraft(); // before it is written with the message
    if (!this.actions.send({ text, pictures, editing })) {
      chat.draft = draft;
      return;
    }
    this.#leaveEdit();
    this.#fill(chat.draft);
    this.text.focus();
  }

  #leaveEdit() {
    if (!this.#editing) return;
    this.#editing = null;
    this.form.classList.remove("editing");
    this.actions.edit(null);
  }

  #fill({ text, pictures }) {
    this.text.value = text;
    this.#pictures = [...pictures];
    this.#showPictures();
    this.#resize();
  }

  #add(picture) {
    this.chats.addPicture(picture);
    this.#pictures.push(picture.id);
    this.#showPictures();
    this.#saveDraft();
  }

  /** To a chat that was left before the picture was read. */
  #addElsewhere(chat, picture) {
    this.chats.addPicture(picture);
    chat.draft.pictures.push(picture.id);
    this.chats.keep(chat);
  }

  #remove(index) {
    this.#pictures.splice(index, 1);
    this.#showPictures();
    this.#saveDraft();
    (this.list.querySelectorAll(".remove")[Math.min(index, this.#pictures.length - 1)] ?? this.text).focus();
  }

  #showPictures() {
    const items = this.#pictures.map((id, index) => {
      const picture = this.chats.picture(id);
      const label = `Remove: ${picture ? describe(picture) : "missing picture"}`;
      return el("li", {}, thumbnail(picture), iconButton("close", label, () => this.#remove(index), { class: "icon remove" }));
    });
    for (const _ of this.#reading) items.push(el("li", { class: "thumb reading" }, "Reading …"));
    this.list.replaceChildren(...items);
    this.list.hidden = !items.length;
  }

  #keepDraft() {
    if (this.#editing || !this.#chat) return;
    const draft = { text: this.text.value, pictures: [...this.#pictures] };
    const isNew = !this.chats.get(this.#chat.id);
    if (isNew && !draft.text && !draft.pictures.length) return;
    this.#chat.draft = draft;
    this.chats.keep(this.#chat);
  }

  #resize() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, MAX_HEIGHT)}px`;
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.actions.stop());
    byId("leave-edit").addEventListener("click", () => this.cancelEdit());
    this.text.addEventListener("input", () => {
      this.#resize();
      this.#saveDraft();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229 || touch.matches) return;
      event.preventDefault();
      this.send();
    });
    addEventListener("visibilitychange", () => this.#saveDraft.now());
    addEventListener("pagehide", () => this.#saveDraft.now());
    const files = byId("files");
    byId("attach").addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      this.addFiles(files.files);
      files.value = "";
    });
    this.#listenForAddresses();
    document.addEventListener("paste", (event) => this.#pasted(event));
    this.#listenForDrops();
  }

  #listenForAddresses() {
    const [button, row, field] = [byId("attach-address"), byId("address"), byId("address-text")];
    const open = (isOpen) => {
      row.hidden = !isOpen;
      button.setAttribute("aria-expanded", String(isOpen));
      (isOpen ? field : this.text).focus();
    };
    const add = () => {
      if (!this.addAddress(field.value)) return field.focus();
      field.value = "";
      return open(false);
    };
    button.addEventListener("click", () => open(row.hidden));
    byId("address-close").addEventListener("click", () => open(false));
    byId("address-add").addEventListener("click", add);
    row.addEventListener("keydown", (event) => {
      if (event.key === "Escape") open(false);
      else if (event.key === "Enter" && event.target === field) add();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  /** A picture from the clipboard, wherever the focus is. What is also text (cells of a table, say) is pasted as that. */
  #pasted(event) {
    const { files, types } = event.clipboardData;
    if (!files.length || types.includes("text/plain") || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    this.addFiles(files);
  }

  #listenForDrops() {
    const overlay = byId("drop");
    let isOurs = false; // a thumbnail that is dragged about
    const carries = ({ dataTransfer }) => !isOurs && ["Files", "text/uri-list"].some((type) => dataTransfer.types.includes(type));
    addEventListener("dragstart", () => (isOurs = true));
    addEventListener("dragend", () => (isOurs = false));
    addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      overlay.hidden = false;
    });
    addEventListener("dragleave", (event) => (overlay.hidden = event.relatedTarget === null || overlay.hidden));
    addEventListener("drop", (event) => {
      overlay.hidden = true;
      if (!carries(event)) return;
      event.preventDefault(); // or the browser would leave the page for the picture
      const { files } = event.dataTransfer;
      const address = event.dataTransfer.getData("text/uri-list").split(/\r?\n/).find((line) => line && !line.startsWith("#"));
      if (files.length) this.addFiles(files);
      else if (address) this.addAddress(address);
      this.text.focus();
    });
  }
}

// The page: its parts put together.

import { models, properties, useKey } from "./api.js";
import { Answers } from "./answers.js";
import { Chats, newMessage, picturesOf, titleOf } from "./chats.js";
import { ChatView } from "./chat-view.js";
import { Composer } from "./composer.js";
import { byId, el, later } from "./dom.js";
import { listenToKeys, openKeys } from "./keyboard.js";
import { notice } from "./notices.js";
import { forgetAddresses } from "./pictures.js";
import { showSamples } from "./samples.js";
import { isDark, onSystemTheme, Settings, switchTheme } from "./settings.js";
import { openSettings } from "./settings-view.js";
import { Sidebar } from "./sidebar.js";
import { openTransfer } from "./transfer-view.js";

const settings = new Settings();
useKey(settings.key);
const chats = await Chats.open();
const answers = new Answers(chats, settings);
let chat = null; // the one that is looked at
let served = { first: "", nCtx: null, defaults: {} }; // the server's default model, and what it told of it

const view = new ChatView(chats, answers, { edit: (message) => composer.edit(message), remove, retry, askKey, answer: () => make(chat) });
const composer = new Composer(chats, { send, stop: () => answers.stop(chat), edit: (message) => view.markEdited(message) });
const sidebar = new Sidebar(chats, settings, { begin, rename, remove: removeChat });

answers.onChange = (changed, message) => {
  view.update(changed, message);
  if (changed === chat) composer.setBusy(answers.of(chat) !== undefined);
  if (answers.of(changed)?.phase !== "writing") sidebar.update(chat);
};
chats.onChangeElsewhere = (id) => {
  if (id === chat.id && !answers.of(chat)) open(chats.get(id) ?? chats.fresh(settings.system));
  else sidebar.update(chat);
};
chats.onFailure = (error) => notice(`This chat could not be kept: ${error?.name === "QuotaExceededError" ? "the browser's storage is full. Export or delete chats" : error?.message}.`);

// --- chats ---

/** Shows a chat. Its address is the page's, so the browser's Back works. */
async function open(next, { isNew = true } = {}) {
  await chats.loadPictures(next);
  if (isNew && location.hash !== `#${next.id}`) history.pushState(null, "", next.messages.length ? `#${next.id}` : "./");
  chat = next;
  composer.show(chat);
  view.show(chat);
  composer.setBusy(answers.of(chat) !== undefined);
  showSystem();
  sidebar.update(chat);
  forgetAddresses(new Set(picturesOf(chat)));
  showTitle();
}

function begin() {
  sidebar.leave();
  open(chats.fresh(settings.system)).then(() => byId("composer-text").focus());
}

function openAddressed() {
  open(chats.get(location.hash.slice(1)) ?? chats.fresh(settings.system), { isNew: false });
}

function showTitle() {
  const title = titleOf(chat);
  byId("title").textContent = title;
  document.title = chat.messages.length ? `${title} – pyvllama` : "pyvllama";
}

function showSystem() {
  byId("system-text").value = chat.system;
  byId("system").open = Boolean(chat.system);
}

async function rename(renamed, title) {
  renamed.title = title;
  await chats.keep(renamed);
  showTitle();
}

async function removeChat(removed) {
  answers.stop(removed);
  await chats.remove(removed);
  if (removed === chat) await open(chats.fresh(settings.system));
  else sidebar.update();
  byId("new-chat").focus();
  const bringBack = async () => {
    await chats.keep(removed);
    open(removed);
  };
  notice(`“${titleOf(removed)}” was deleted.`, { label: "Undo", run: bringBack });
}

// --- messages ---

/** Sends a message, or an earlier one anew. Answers whether it was taken. */
function send({ text, pictures, editing }) {
  if (answers.of(chat)) {
    notice("The answer is still being written. Stop it first, with the button or Esc.");
    return false;
  }
  const begins = chat.messages.length === 0;
  const index = chat.messages.indexOf(editing); // an edited message may have been deleted meanwhile
  if (index >= 0) change("The message was replaced, with all after it.", index);
  chat.messages.push(newMessage("user", text, pictures));
  if (begins) history.replaceState(null, "", `#${chat.id}`);
  make(chat);
  return true;
}

function make(asked) {
  const made = answers.make(asked);
  if (asked === chat) showTitle();
  made.then(() => {
    if (byId("model").disabled) loadServer(); // it could not be reached before
  });
}

function retry(message) {
  if (answers.of(chat)) return;
  const index = chat.messages.indexOf(message);
  const isLast = index === chat.messages.length - 1;
  change(isLast && !message.text ? null : "The answer is written anew.", index);
  make(chat);
  byId("composer-text").focus();
}

function remove(message) {
  const index = chat.messages.indexOf(message);
  let end = index + 1;
  if (message.role === "user") while (chat.messages[end]?.role === "assistant") end++;
  if (answers.of(chat)) answers.stop(chat);
  change(message.role === "user" ? "The message was deleted, with its answer." : "The answer was deleted.", index, end);
  chats.keep(chat);
  view.show(chat);
  view.focusAt(index);
  sidebar.update(chat);
  showTitle();
}

/** Takes messages away, up to the end if none is given, and offers to bring them back. */
function change(words, begin, end = chat.messages.length) {
  const [changed, before] = [chat, [...chat.messages]];
  chat.messages.splice(begin, end - begin);
  if (composer.editing && !chat.messages.includes(composer.editing)) composer.cancelEdit();
  const undo = () => {
    answers.stop(changed);
    changed.messages = before;
    chats.forgetKept(changed);
    chats.keep(changed);
    open(changed);
  };
  if (words) notice(words, { label: "Undo", run: undo });
}

function askKey(message) {
  const key = settings.key;
  showSettings({ toKey: true, closed: () => settings.key !== key && message && retry(message) });
}

// --- server and settings ---

async function loadServer() {
  const select = byId("model");
  const banner = byId("banner");
  try {
    const names = await models();
    const chosen = names.includes(settings.model) ? settings.model : (names[0] ?? "");
    settings.model = chosen;
    select.replaceChildren(...names.map((name) => el("option", { value: name, selected: name === chosen }, name)));
    select.disabled = names.length === 0;
    banner.hidden = true;
    served = { first: names[0] ?? "", nCtx: null, defaults: {} };
    showSamples(chosen, trySample);
  } catch (error) {
    const act = error.needsKey ? ["Enter API key", () => askKey(null)] : ["Try again", loadServer];
    banner.replaceChildren(el("p", {}, error.message), el("button", { type: "button", class: "quiet", onclick: act[1] }, act[0]));
    banner.hidden = false;
    return;
  }
  Object.assign(served, await properties());
  showModel();
}

/** What is known of the chosen model. Of others than the default one, nothing: asking would have the server load it. */
function showModel() {
  view.nCtx = settings.model === served.first ? served.nCtx : null;
}

async function trySample(file, question) {
  await composer.addFiles([file]);
  byId("composer-text").value = question;
  await composer.send();
}

const reloadServer = later(loadServer, 300);

function showSettings({ toKey = false, closed = () => {} } = {}) {
  const key = settings.key;
  const changed = () => useKey(settings.key);
  const whenClosed = () => {
    if (settings.key !== key) reloadServer();
    if (!chat.messages.length && !chats.get(chat.id)) {
      chat.system = settings.system;
      showSystem();
    }
    closed();
  };
  const defaults = settings.model === served.first ? served.defaults : {};
  openSettings(settings, defaults, { toKey, changed, closed: whenClosed });
}

function showTheme() {
  byId("switch-theme").setAttribute("aria-pressed", String(isDark()));
}

const keepSystem = later((changed) => chats.keep(changed), 400);

byId("model").addEventListener("change", ({ target }) => {
  settings.model = target.value;
  settings.save();
  showModel();
  showSamples(settings.model, trySample);
});
byId("system-text").addEventListener("input", ({ target }) => {
  chat.system = target.value;
  keepSystem(chat);
});
byId("open-settings").addEventListener("click", () => showSettings());
byId("open-keys").addEventListener("click", openKeys);
byId("open-export").addEventListener("click", () => {
  sidebar.leave();
  openTransfer(chats, chat, () => sidebar.update(chat));
});
byId("switch-theme").addEventListener("click", () => {
  switchTheme();
  showTheme();
});
onSystemTheme(showTheme);
addEventListener("popstate", openAddressed);
listenToKeys(settings, {
  begin,
  search: () => {
    sidebar.open(true);
    byId("search").focus();
  },
  escape: () => {
    if (sidebar.isOver) sidebar.open(false);
    else if (composer.editing) composer.cancelEdit();
    else if (answers.of(chat)) answers.stop(chat);
    else return false;
    return true;
  },
  editLast: () => {
    const last = chat.messages.findLast((message) => message.role === "user");
    if (!last || !composer.isEmpty || answers.of(chat)) return false;
    composer.edit(last);
    return true;
  },
});

if (!chats.lasting) notice("This browser does not let the page keep anything: chats are gone when it closes. Export what you need.");
showTheme();
openAddressed();
loadServer();

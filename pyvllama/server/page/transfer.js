// Chats as files: JSON with their pictures, which can be read again, and Markdown, which people can.

import { newId } from "./dom.js";
import { noDraft, picturesOf, titleOf } from "./chats.js";
import { fromAddress, source } from "./pictures.js";

const FORMAT = "pyvllama-chats";
const VERSION = 1;
const PICTURE = /^data:(image\/(?:png|jpeg|webp|gif|bmp));base64,([A-Za-z0-9+/]+={0,2})$/;

/** Chats as JSON text, with the pictures of their messages. */
export async function toJson(list, chats) {
  const pictures = new Map();
  for (const chat of list) {
    await chats.loadPictures(chat);
    for (const id of picturesOf({ ...chat, draft: noDraft() })) {
      const picture = chats.picture(id);
      if (!picture || pictures.has(id)) continue;
      const { name, width, height, url } = picture;
      pictures.set(id, url ? { id, name, url } : { id, name, width, height, data: await source(picture) });
    }
  }
  const plain = list.map(({ draft, ...chat }) => chat);
  const file = { format: FORMAT, version: VERSION, exported: new Date().toISOString(), chats: plain, pictures: [...pictures.values()] };
  return JSON.stringify(file, null, 1);
}

/** A chat as Markdown; pictures by name. */
export function toMarkdown(chat, chats) {
  const parts = [`# ${titleOf(chat)}`];
  if (chat.system.trim()) parts.push(`> ${chat.system.trim().replaceAll("\n", "\n> ")}`);
  for (const { role, text, pictures, model } of chat.messages) {
    parts.push(role === "user" ? "**You**" : `**${model || "Model"}**`);
    for (const id of pictures) {
      const picture = chats.picture(id);
      parts.push(picture?.url ? `[${picture.name}](${picture.url})` : `[picture: ${picture?.name ?? "missing"}]`);
    }
    if (text) parts.push(text);
  }
  return `${parts.join("\n\n")}\n`;
}

/**
 * Adds the chats of a file. One that is here already, unchanged, is left; one that has changed comes in beside it.
 * Nothing of the file is taken but what is named here, each of its type.
 * @returns {{nAdded: number, nKnown: number}}
 * @throws {Error} saying what is wrong with the file; nothing has been added then
 */
export async function addFromJson(text, chats) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is no JSON.");
  }
  if (file?.format !== FORMAT) throw new Error("This file holds no chats of this page.");
  if (file.version !== VERSION) throw new Error(`These chats are of version ${file.version}; this page reads version ${VERSION}.`);
  const ids = new Map(); // a picture's id in the file -> here
  const pictures = listOf(file.pictures, "pictures").map((picture) => readPicture(picture, ids));
  const read = listOf(file.chats, "chats").map((chat) => readChat(chat, ids));
  const fresh = read.filter((chat) => chats.get(chat.id)?.updated !== chat.updated);
  for (const picture of pictures) chats.addPicture(picture);
  for (const chat of fresh) await chats.keep(chats.get(chat.id) ? { ...chat, id: newId() } : chat);
  return { nAdded: fresh.length, nKnown: read.length - fresh.length };
}

/** Has the browser save a text as a file. */
export function download(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A chat's title as the name of a file. */
export const fileName = (chat) => titleOf(chat).replace(/[^\p{L}\p{N} _-]+/gu, "").trim().replace(/\s+/g, "-").slice(0, 50) || "chat";

function readPicture(picture, ids) {
  const id = newId();
  ids.set(textOf(picture?.id, "a picture's id"), id);
  const name = textOf(picture.name, "a picture's name");
  if (picture.url !== undefined) return { ...fromAddress(textOf(picture.url, "a picture's url")), id, name };
  const data = PICTURE.exec(textOf(picture.data, "a picture's data"));
  if (!data) throw new Error(`The picture ${name} of this file is of no known type.`);
  const bytes = Uint8Array.from(atob(data[2]), (character) => character.charCodeAt(0));
  const [width, height] = [picture.width, picture.height].map((n) => numberOf(n, "a picture's size"));
  return { id, name, width, height, blob: new Blob([bytes], { type: data[1] }) };
}

function readChat(chat, ids) {
  const id = textOf(chat?.id, "a chat's id");
  return {
    id: /^[0-9a-f]{24}$/.test(id) ? id : newId(),
    title: textOf(chat.title, "a chat's title"),
    created: numberOf(chat.created, "a chat's created"),
    updated: numberOf(chat.updated, "a chat's updated"),
    system: textOf(chat.system, "a chat's system"),
    messages: listOf(chat.messages, "a chat's messages").map((message) => readMessage(message, ids)),
    draft: noDraft(),
  };
}

function readMessage(message, ids) {
  const role = message?.role;
  if (role !== "user" && role !== "assistant") throw new Error(`A message of this file has the role ${role}.`);
  const pictures = listOf(message.pictures, "a message's pictures").map((id) => ids.get(id) ?? newId());
  const plain = { id: newId(), role, text: textOf(message.text, "a message's text"), pictures, created: numberOf(message.created, "a message's created") };
  if (role === "user") return plain;
  const { model, finish } = message;
  return {
    ...plain,
    model: typeof model === "string" ? model : "",
    finish: ["stop", "length", "stopped"].includes(finish) ? finish : null,
    ...Object.fromEntries(["timings", "usage", "seconds"].map((name) => [name, numbersOf(message[name])])),
  };
}

/** Of an object what are numbers; costs have nothing else. */
const numbersOf = (value) => Object.fromEntries(Object.entries(value ?? {}).filter(([, n]) => Number.isFinite(n)));

function textOf(value, what) {
  if (typeof value !== "string") throw new Error(`In this file ${what} is no text.`);
  return value;
}

function numberOf(value, what) {
  if (!Number.isFinite(value)) throw new Error(`In this file ${what} is no number.`);
  return value;
}

function listOf(value, what) {
  if (!Array.isArray(value)) throw new Error(`In this file ${what} is no list.`);
  return value;
}

// Pictures: made small enough to send, kept in the database, shown by blob: addresses.
//
// A picture is a record {id, name, width, height, blob}, or {id, name, url} for one that the server fetches itself
// (this page asks no other host for anything, so it cannot show those).

import { el, newId } from "./dom.js";

const MAX_SIDE = 2240; // the model's canvas has at most 4 tiles of 560: nothing beyond reaches it
const MAX_AS_IS = 3_000_000; // bytes; larger files are worth writing again
const MAX_PNG = 4_000_000; // bytes; beyond it a photo is at hand, whatever its file says
const QUALITY = 0.92; // of JPEG
const SENT_AS_IS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]; // what the server reads
const LOSSLESS = ["image/png", "image/gif", "image/bmp", "image/svg+xml"];

/**
 * A picture from a file, a drop or the clipboard.
 * One within the limits stays as it is, byte for byte. Others are drawn anew, at most 2240 px a side, upright.
 * @throws {Error} naming the file, if it is no picture that this browser reads
 */
export async function fromFile(file) {
  const name = file.name || "picture";
  const image = el("img");
  const address = URL.createObjectURL(file);
  try {
    image.src = address;
    await image.decode();
    const width = image.naturalWidth; // with the EXIF orientation applied
    const height = image.naturalHeight;
    if (!width || !height) throw new Error("no size");
    const asIs = SENT_AS_IS.includes(file.type) && Math.max(width, height) <= MAX_SIDE && file.size <= MAX_AS_IS;
    // A blob of our own: a file that is moved or changed on the disk can no longer be read through its File.
    const kept = asIs ? { width, height, blob: new Blob([await file.arrayBuffer()], { type: file.type }) } : await redraw(image, file.type);
    return { id: newId(), name, ...kept };
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  } finally {
    URL.revokeObjectURL(address);
  }
}

/**
 * A picture that the server is to fetch.
 * @throws {Error} if it is no http(s) address
 */
export function fromAddress(text) {
  const url = URL.canParse(text.trim()) ? new URL(text.trim()) : null;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") {
    throw new Error("An address begins with http:// or https://.");
  }
  return { id: newId(), name: decode(url.pathname.split("/").pop()) || url.host, url: url.href };
}

/** What the API takes: a data: URI, or the address. */
export function source(picture) {
  if (picture.url) return picture.url;
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${picture.name} can no longer be read from the browser's storage.`));
    reader.readAsDataURL(picture.blob);
  });
}

/** Words for those who do not see it. */
export const describe = (picture) =>
  picture.url ? `Picture at ${picture.url}` : `Picture ${picture.name}, ${picture.width} by ${picture.height} pixels`;

const addresses = new Map(); // id -> blob: address

/** Where an <img> finds it. */
export function address(picture) {
  if (!addresses.has(picture.id)) addresses.set(picture.id, URL.createObjectURL(picture.blob));
  return addresses.get(picture.id);
}

/** Gives back the memory of all addresses but those of these pictures. */
export function forgetAddresses(except) {
  for (const [id, url] of addresses) {
    if (except.has(id)) continue;
    URL.revokeObjectURL(url);
    addresses.delete(id);
  }
}

async function redraw(image, type) {
  const scale = Math.min(1, MAX_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const width = Math.max(1, Math.round(image.naturalWidth * scale));
  const height = Math.max(1, Math.round(image.naturalHeight * scale));
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  let blob = LOSSLESS.includes(type) ? await written(canvas, "image/png") : null;
  if (!blob || blob.size > MAX_PNG) {
    context.globalCompositeOperation = "destination-over"; // JPEG has no transparency: white, as the server does
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    blob = await written(canvas, "image/jpeg");
  }
  return { width, height, blob };
}

const written = (canvas, type) =>
  new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("too large"))), type, QUALITY);
  });

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

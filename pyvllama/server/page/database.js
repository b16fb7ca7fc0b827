// The browser's database: chats and pictures. Where it is refused (private windows), they last as long as the page.

const NAME = "pyvllama";
const VERSION = 1;
const STORES = ["chats", "pictures"];

/** A promise of an IndexedDB request. */
const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Kept by the browser. Every record has an `id`. */
class Kept {
  lasting = true;

  constructor(database) {
    this.database = database;
  }

  get(store, id) {
    return result(this.database.transaction(store).objectStore(store).get(id));
  }

  all(store) {
    return result(this.database.transaction(store).objectStore(store).getAll());
  }

  ids(store) {
    return result(this.database.transaction(store).objectStore(store).getAllKeys());
  }

  /** Writes records of several stores, {chats: [...], pictures: [...]}: all of them or, when it fails, none. */
  put(records) {
    return this.#write(records, (store, record) => store.put(record));
  }

  /** Deletes by id, {chats: [...], pictures: [...]}. */
  remove(ids) {
    return this.#write(ids, (store, id) => store.delete(id));
  }

  #write(items, write) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(Object.keys(items), "readwrite");
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
      for (const [name, list] of Object.entries(items)) {
        for (const item of list) write(transaction.objectStore(name), item);
      }
    });
  }
}

/** The same, in memory. */
class Passing {
  lasting = false;
  #stores = Object.fromEntries(STORES.map((name) => [name, new Map()]));

  async get(store, id) {
    return this.#stores[store].get(id);
  }

  async all(store) {
    return [...this.#stores[store].values()];
  }

  async ids(store) {
    return [...this.#stores[store].keys()];
  }

  async put(records) {
    for (const [name, list] of Object.entries(records)) {
      for (const record of list) this.#stores[name].set(record.id, structuredClone(record));
    }
  }

  async remove(ids) {
    for (const [name, list] of Object.entries(ids)) {
      for (const id of list) this.#stores[name].delete(id);
    }
  }
}

/** The database. Never fails: what cannot be kept is held in memory, and `lasting` says so. */
export async function openDatabase() {
  try {
    const opening = indexedDB.open(NAME, VERSION);
    opening.onupgradeneeded = () => {
      for (const name of STORES) opening.result.createObjectStore(name, { keyPath: "id" });
    };
    const database = await result(opening);
    database.onversionchange = () => database.close(); // a newer page in another tab
    return new Kept(database);
  } catch {
    return new Passing();
  }
}

// The last photos of this browser with their jobs, in its own database; a browser that refuses one just forgets.

const KEPT = 12;
let opening = null;

function open() {
  opening ??= new Promise((done, fail) => {
    const request = indexedDB.open("visionmesh", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("photos", { keyPath: "at" });
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
  return opening;
}

async function within(mode, work) {
  try {
    const transaction = (await open()).transaction("photos", mode);
    const request = work(transaction.objectStore("photos"));
    return await new Promise((done, fail) => {
      transaction.oncomplete = () => done(request.result);
      transaction.onerror = transaction.onabort = () => fail(transaction.error);
    });
  } catch {
    return null;
  }
}

/** All kept photos, the latest first: `{at, name, blob, job}`. */
export const all = async () => ((await within("readonly", photos => photos.getAll())) || []).reverse();

/** Keep a photo whose job has ended, and forget the oldest above `KEPT`. */
export async function keep({ at, name, blob, job }) {
  await within("readwrite", photos => photos.put({ at, name, blob, job }));
  const keys = (await within("readonly", photos => photos.getAllKeys())) || [];
  for (const key of keys.slice(0, Math.max(keys.length - KEPT, 0))) await within("readwrite", photos => photos.delete(key));
}

export const forget = () => within("readwrite", photos => photos.clear());

// The engine's own API, the one that everybody has. The session's cookie goes along by itself; the header
// shows that it is this page that asks.

const PAGE = { "x-overnight-dashboard": "1" };

/** What the engine refused, in its own words. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message || `The engine answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
  }
}

let visit = new AbortController();

/** Forget what was asked on behalf of a page that is left. */
export function abandon() {
  visit.abort();
  visit = new AbortController();
}

async function ask(method, path, body) {
  const { signal } = visit;
  let response;
  try {
    const headers = body === undefined ? PAGE : { ...PAGE, "content-type": "application/json" };
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch {
    throw new Refused(0, { message: "The engine cannot be reached." });
  }
  if (!response.ok) await refuse(response);
  try {
    return await response.json();
  } catch {
    throw new Refused(0, { message: "The engine's answer broke off." });
  }
}

async function refuse(response) {
  const answer = await response.json().catch(() => null);
  if (response.status === 401) dispatchEvent(new Event("overnight:signed-out"));
  throw new Refused(response.status, answer?.error);
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);
export const session = () => get("/dashboard/session");
export const signOut = () => ask("DELETE", "/dashboard/session");
export const batchPath = (id, rest = "") => `/v1/batches/${encodeURIComponent(id)}${rest}`;

/** Sign in; a wrong key is an ordinary answer here. */
export async function signIn(key) {
  return post("/dashboard/session", { key });
}

/** Upload a file; `onProgress` hears what share of it has gone. */
export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file, file.name);
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/files");
    for (const [name, value] of Object.entries(PAGE)) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () =>
      request.status === 200 ? resolve(request.response) : reject(new Refused(request.status, request.response?.error));
    request.onerror = () => reject(new Refused(0, { message: "The engine cannot be reached." }));
    request.send(form);
  });
}

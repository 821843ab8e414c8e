// The stream of events: one for the whole page, open while the page can be seen.

import { session } from "./api.js";

const AGAIN_MS = 3000;
const DOUBT_MS = 2500;
const listeners = new Set();
let source = null;
let timer = null;
let doubt = null;
let isWanted = false;

/** Hear of changes: `onUpdate(update)`, and `onHello()` whenever one should read afresh. Returns how to stop. */
export function listen(listener) {
  listeners.add(listener);
  if (source?.hasSaidHello) listener.onHello?.();
  return () => listeners.delete(listener);
}

/** Call this after a while, but not before somebody can see it. Returns how to call it off. */
export function later(callback, milliseconds) {
  let isOff = false;
  const act = () => {
    if (isOff) return;
    if (document.hidden) document.addEventListener("visibilitychange", act, { once: true });
    else callback();
  };
  const waiting = setTimeout(act, milliseconds);
  return () => {
    isOff = true;
    clearTimeout(waiting);
  };
}

export function start() {
  isWanted = true;
  open();
}

export function stop() {
  isWanted = false;
  close();
  tell("off");
}

function open() {
  clearTimeout(timer);
  if (source || !isWanted || document.hidden) return;
  const mine = new EventSource("/v1/events");
  source = mine;
  mine.addEventListener("hello", () => {
    clearTimeout(doubt);
    tell("live");
    for (const each of listeners) each.onHello?.();
  });
  mine.addEventListener("batch", (event) => {
    const update = JSON.parse(event.data);
    for (const each of listeners) each.onUpdate?.(update);
  });
  mine.addEventListener("error", () => {
    // Now and then a stream ends, and the next one begins at once.
    clearTimeout(doubt);
    doubt = setTimeout(tell, DOUBT_MS, "away");
    // The browser tries again by itself after a broken connection, but not after a refusal.
    if (mine.readyState === EventSource.CLOSED && source === mine) {
      source = null;
      timer = setTimeout(openAgain, AGAIN_MS);
    }
  });
}

/** After a refusal: the session may have ended, or the engine is not quite there yet. */
async function openAgain() {
  const who = await session().catch(() => null);
  if (who && !who.project) dispatchEvent(new Event("overnight:signed-out"));
  else open();
}

function close() {
  clearTimeout(timer);
  clearTimeout(doubt);
  source?.close();
  source = null;
}

function tell(state) {
  dispatchEvent(new CustomEvent("overnight:live", { detail: state }));
}

// A browser keeps six connections to a server for all its tabs together: one that nobody sees needs none.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
addEventListener("pagehide", close);
addEventListener("pageshow", open);

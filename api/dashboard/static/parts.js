// What several pages show: a status, a progress bar, a deadline, a button that does something.

import { h, say, show } from "./dom.js";
import { at, duration, number, percent } from "./format.js";

const WORDS = {
  validating: "Validating", failed: "Invalid", in_progress: "Running", finalizing: "Finalizing",
  completed: "Completed", expired: "Expired", cancelling: "Cancelling", cancelled: "Cancelled", paused: "Paused",
};
export const FINAL = new Set(["failed", "completed", "expired", "cancelled"]);
export const STATUSES = Object.entries(WORDS).filter(([name]) => name !== "paused");
export const wordOf = (status) => WORDS[status] ?? status;

/** A status as a label; a batch that rests says so. */
export function badge() {
  const element = h("span", { class: "badge" });
  return { element, update: (batch, progress) => {
    const name = progress?.paused ? "paused" : batch.status;
    element.dataset.status = name;
    show(element, wordOf(name));
  } };
}

/** How much of a batch has ended, well or not. */
export function progressBar(label) {
  const done = h("span", { class: "done" });
  const failed = h("span", { class: "failed" });
  const element = h("div", { class: "progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, done, failed);
  return { element, update: (counts) => {
    done.style.width = `${percent(counts.completed, counts.total)}%`;
    failed.style.width = `${percent(counts.failed, counts.total)}%`;
    const ended = Math.floor(percent(counts.completed + counts.failed, counts.total));
    element.setAttribute("aria-valuenow", ended);
    element.setAttribute("aria-valuetext", countsText(counts));
  } };
}

export function countsText(counts) {
  if (!counts.total) return "";
  const ended = `${number(counts.completed + counts.failed)} of ${number(counts.total)}`;
  return counts.failed ? `${ended}, ${number(counts.failed)} failed` : ended;
}

export const endedAt = (batch) => batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;

/** How long until the window closes, or how long the batch took. */
export function deadline(batch, now = Date.now() / 1000) {
  const ended = endedAt(batch);
  if (ended) return { text: `took ${duration(ended - batch.created_at)}`, title: `Ended ${at(ended)}`, urgent: false };
  const left = batch.expires_at - now;
  const urgent = left < (batch.expires_at - batch.created_at) / 8;
  return { text: left > 0 ? `${duration(left)} left` : "window closed", title: `Window closes ${at(batch.expires_at)}`, urgent };
}

/** A button for something that takes a moment; what is refused is shown by `onError`. */
export function action(text, run, { onError, kind = "" } = {}) {
  const button = h("button", { type: "button", class: kind }, text);
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      await run();
    } catch (error) {
      onError?.(error);
      say(error.message);
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  });
  return button;
}

/** Ask before something that cannot be undone. */
export function confirm(question, { yes, no = "Not now" }) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-label": question },
      h("p", {}, question),
      h("form", { method: "dialog", class: "buttons" },
        h("button", { value: "no", autofocus: true }, no), h("button", { value: "yes", class: "danger" }, yes)));
    dialog.addEventListener("close", () => { resolve(dialog.returnValue === "yes"); dialog.remove(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export function notice(text, kind = "error") {
  return h("p", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" }, text);
}

/** A number with its name under it. */
export function tile(label) {
  const value = h("dd", {}, "–");
  const element = h("div", { class: "tile" }, h("dt", {}, label), value);
  return { element, update: (text, title) => { show(value, text); value.title = title ?? ""; } };
}

/** An empty page's heading and place; the heading takes the focus, so that a screen reader begins there. */
export function page(root, title, ...children) {
  const heading = h("h1", { tabindex: -1 }, title);
  root.replaceChildren(h("div", { class: "heading" }, heading), ...children);
  document.title = `${title} – Overnight`;
  return heading;
}

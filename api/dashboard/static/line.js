// One line of a batch: what was asked and what was answered, side by side.

import { batchPath, get } from "./api.js";
import { h, say, show } from "./dom.js";
import { latency, number } from "./format.js";
import { action, notice } from "./parts.js";

/** The place where a line is shown; `open(number)` fetches one and brings it into view. */
export function lineViewer(id) {
  const field = h("input", { id: "line-number", type: "number", min: 1, step: 1, inputmode: "numeric", required: true });
  const place = h("div", { class: "sides" });
  const form = h("form", { class: "toolbar" }, h("label", { for: "line-number" }, "Line"), field, h("button", { type: "submit" }, "Show"));
  const heading = h("h2", { id: "one-line", tabindex: -1 }, "One line");
  const element = h("section", { class: "card", "aria-labelledby": "one-line" }, heading, form, place);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    open(field.valueAsNumber);
  });

  async function open(line, { focus = false } = {}) {
    field.value = line;
    show(place, h("p", { class: "faint" }, "Reading…"));
    if (focus) {
      element.scrollIntoView({ block: "start" });
      heading.focus({ preventScroll: true });
    }
    try {
      draw(await get(batchPath(id, `/lines/${line}`)));
    } catch (error) {
      show(place, notice(error.message));
    }
  }

  function draw(found) {
    const took = found.seconds ? `, took ${latency(found.seconds)}` : "";
    const title = found.answer === null ? "No answer yet" : found.succeeded ? `Answer${took}` : `Error${took}`;
    say(`Line ${found.line}: ${title}`);
    show(place,
      side(`Request ${number(found.line)}`, found.request, found.request_is_cut),
      side(title, found.answer, found.answer_is_cut));
  }

  return { element, open, button: (line, text = `Line ${number(line)}`) => action(text, () => open(line, { focus: true }), { kind: "small" }) };
}

function side(title, text, isCut) {
  return h("div", {}, h("h3", {}, title),
    text === null ? h("p", { class: "faint" }, "It has not been called, or its call has not ended.")
      : h("pre", { tabindex: 0, "aria-label": title }, pretty(text)),
    isCut ? h("p", { class: "faint" }, "Only its beginning: the whole of it is in the file.") : null);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// A new batch: drop a file, and see beside each line what is wrong with it, if anything is.

import { batchPath, get, post, upload } from "../api.js";
import { h, say, show } from "../dom.js";
import { bytes, number } from "../format.js";
import { listen } from "../live.js";
import { notice, page, progressBar } from "../parts.js";

const LOOK_AT = 256 * 1024;
const SHOWN_OF_A_LINE = 4000;
const ENDPOINTS = [
  "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations",
  "/v1/images/generations", "/v1/images/edits", "/v1/videos",
];

export function mount(root) {
  const state = { file: null, stop: null, isOver: false };
  const picker = h("input", { id: "file", type: "file", accept: ".jsonl,.ndjson,.json,.txt", class: "unseen" });
  const dropped = h("span", { class: "faint" }, "or choose one, with a request on each line");
  const zone = h("label", { class: "drop", for: "file" }, h("strong", {}, "Drop a JSON lines file here"), dropped, picker);
  const endpoint = h("select", {}, ENDPOINTS.map((name) => h("option", { value: name }, name)));
  const window_ = h("input", { value: "24h", required: true, size: 8 });
  const name = h("input", { maxlength: 512, placeholder: "for you to find it again" });
  const start = h("button", { class: "primary", type: "submit", disabled: true }, "Start the batch");
  const told = h("div", { "aria-live": "polite" });
  const form = h("form", {}, zone,
    h("div", { class: "fields" },
      h("label", {}, "Endpoint", endpoint), h("label", {}, "Completion window", window_), h("label", {}, "Name (optional)", name)),
    h("div", { class: "buttons" }, start));
  page(root, "New batch", form, told);

  async function choose(file) {
    if (!file) return;
    state.file = file;
    start.disabled = false;
    show(dropped, `${file.name}, ${bytes(file.size)}`);
    show(told);
    // What its first line says is most likely what is meant.
    try {
      const [first] = (await file.slice(0, LOOK_AT).text()).split("\n", 1);
      const { url } = JSON.parse(first);
      if (ENDPOINTS.includes(url)) endpoint.value = url;
    } catch {
      // The check of the whole file will say what is wrong with it.
    }
  }

  picker.addEventListener("change", () => choose(picker.files[0]));
  const over = (isOver) => (event) => { event.preventDefault(); zone.classList.toggle("over", isOver); };
  zone.addEventListener("dragenter", over(true));
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => { over(false)(event); choose(event.dataTransfer.files[0]); });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    start.disabled = true;
    try {
      await send();
    } catch (error) {
      show(told, notice(error.message));
    } finally {
      start.disabled = false;
    }
  });

  async function send() {
    const { file } = state;
    const bar = progressBar("Upload");
    const words = h("p", { class: "counts" }, "Uploading…");
    show(told, h("div", { class: "card" }, bar.element, words));
    const uploaded = await upload(file, (share) => bar.update({ total: 100, completed: Math.round(100 * share), failed: 0 }));
    show(words, "Checking every line…");
    const metadata = name.value.trim() ? { name: name.value.trim() } : undefined;
    const made = await post("/v1/batches", {
      input_file_id: uploaded.id, endpoint: endpoint.value, completion_window: window_.value.trim(), metadata,
    });
    const checked = await untilChecked(made);
    if (state.isOver) return;
    if (checked.status === "failed") await showErrors(checked);
    else location.hash = `#/batches/${checked.id}`;
  }

  function untilChecked(batch) {
    return new Promise((resolve) => {
      const look = (seen) => {
        if (seen.id !== batch.id || seen.status === "validating") return;
        state.stop?.();
        resolve(seen);
      };
      const ask = () => get(batchPath(batch.id)).then(look).catch(() => null);
      state.stop = listen({ onUpdate: (update) => look(update.batch), onHello: ask });
      // It may have been quicker than this.
      ask();
    });
  }

  async function showErrors(batch) {
    const errors = batch.errors?.data ?? [];
    const lines = await readLines(state.file, new Set(errors.map((error) => error.line).filter(Boolean)));
    const whole = errors.filter((error) => !error.line);
    const heading = `${number(errors.length)} ${errors.length === 1 ? "fault" : "faults"} found: nothing was called.`;
    show(told, notice(heading), h("section", { class: "card", "aria-label": "Faults" },
      whole.map((error) => h("p", {}, error.message)),
      errors.filter((error) => error.line).map((error) => h("div", { class: "checked" },
        h("h3", {}, `Line ${number(error.line)}`),
        h("pre", { tabindex: 0, "aria-label": `Line ${error.line}` }, lines.get(error.line) ?? ""),
        h("p", { class: "notice error" }, error.message, error.param ? ` (${error.param})` : "")))),
      h("p", { class: "hint" }, "Correct these lines and drop the file again. ", h("a", { href: `#/batches/${batch.id}` }, "This batch"), " keeps the list."));
    say(heading);
  }

  return () => { state.isOver = true; state.stop?.(); };
}

/** The lines with these numbers, from the file that is here anyway: nothing has to be asked for. */
async function readLines(file, wanted) {
  const found = new Map();
  if (!wanted.size) return found;
  const last = Math.max(...wanted);
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  let number_ = 1;
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const pieces = (rest + (value ?? "")).split("\n");
    rest = done ? "" : pieces.pop();
    for (const line of pieces) {
      if (wanted.has(number_)) found.set(number_, line.slice(0, SHOWN_OF_A_LINE));
      number_ += 1;
    }
    if (done || number_ > last) break;
  }
  reader.cancel().catch(() => null);
  return found;
}

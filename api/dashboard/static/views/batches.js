// All batches, newest first, as they go.

import { get } from "../api.js";
import { h, show } from "../dom.js";
import { at, compact, duration, number, rate } from "../format.js";
import { listen } from "../live.js";
import { FINAL, STATUSES, action, badge, countsText, deadline, notice, page, progressBar, tile } from "../parts.js";

const PAGE_SIZE = 50;

export function mount(root) {
  const rows = new Map();
  const updatedAt = new Map();
  const unplaced = [];
  let loading = 0;
  const tiles = { running: tile("running"), rate: tile("lines a second"), flight: tile("calls in flight"), next: tile("next deadline") };
  const body = h("tbody");
  const empty = h("div");
  const trouble = h("div");
  const filter = h("select", { id: "status" }, h("option", { value: "" }, "All"),
    h("option", { value: "validating,in_progress,finalizing,cancelling" }, "Open"),
    STATUSES.map(([name, word]) => h("option", { value: name }, word)));
  const more = action("Show more", () => load({ after: [...rows.keys()].at(-1) }), { onError: complain });
  more.hidden = true;
  filter.addEventListener("change", () => { drop(new Set()); load().catch(complain); });
  page(root, "Batches", h("dl", { class: "tiles" }, Object.values(tiles).map((each) => each.element)),
    h("div", { class: "toolbar" }, h("label", { for: "status" }, "Status"), filter, h("a", { class: "button primary", href: "#/new" }, "New batch")),
    trouble,
    h("div", { class: "card table" }, h("table", { class: "batches" },
      h("caption", { class: "unseen" }, "Batches, newest first"),
      h("thead", {}, h("tr", {}, ["Batch", "Status", "Progress", "Lines/s", "Window", "Created"].map((name) => h("th", { scope: "col" }, name)))),
      body), empty),
    h("div", { class: "more" }, more));

  function complain(error) {
    show(trouble, notice(error.message));
  }

  function matches(batch) {
    return !filter.value || filter.value.split(",").includes(batch.status);
  }

  /** Read the list afresh, as far as it is shown; or what comes `after` the last one. */
  async function load(part = {}) {
    loading += 1;
    try {
      await read(part);
    } finally {
      loading -= 1;
    }
    for (const update of unplaced.splice(0)) onUpdate(update);
  }

  async function read({ after }) {
    const began = performance.now();
    const wanted = after ? PAGE_SIZE : Math.max(PAGE_SIZE, rows.size);
    const found = [];
    let hasMore = true;
    while (hasMore && found.length < wanted) {
      const query = new URLSearchParams({ limit: PAGE_SIZE });
      if (filter.value) query.set("status", filter.value);
      const last = found.at(-1)?.id ?? after;
      if (last) query.set("after", last);
      const answer = await get(`/v1/batches?${query}`);
      found.push(...answer.data);
      hasMore = answer.has_more;
    }
    show(trouble);
    if (!after) drop(new Set(found.map((batch) => batch.id)));
    for (const batch of found) {
      const row = rowOf(batch.id);
      // What was heard while this was asked for is newer.
      if (!(updatedAt.get(batch.id) > began)) row.update(batch);
      body.append(row.element);
    }
    sortRows();
    more.hidden = !hasMore;
    show(empty, rows.size ? "" : h("p", { class: "nothing" }, filter.value ? "No batch has this status." : "No batches yet. Drop a file on “New batch”, or send one with any OpenAI SDK."));
    sum();
  }

  function drop(kept) {
    for (const [id, row] of rows) {
      if (kept.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
  }

  /** Keep the rows in the order in which they are seen. */
  function sortRows() {
    const inOrder = [...body.children].map((each) => [each.dataset.id, rows.get(each.dataset.id)]);
    rows.clear();
    for (const [id, row] of inOrder) rows.set(id, row);
  }

  function rowOf(id) {
    if (!rows.has(id)) rows.set(id, makeRow(id));
    return rows.get(id);
  }

  function onUpdate({ batch, progress }) {
    updatedAt.set(batch.id, performance.now());
    const isNew = !rows.has(batch.id);
    // Which part of the list is shown is not known yet, and so whether it has a place there.
    if (isNew && loading) return void unplaced.push({ batch, progress });
    if (isNew && (!matches(batch) || isOlderThanPage(batch))) return;
    if (!isNew && !matches(batch)) {
      rows.get(batch.id).element.remove();
      rows.delete(batch.id);
    } else {
      rowOf(batch.id).update(batch, progress);
      if (isNew) place(batch);
      show(empty);
    }
    sum();
  }

  function isOlderThanPage(batch) {
    const last = [...rows.values()].at(-1);
    return !more.hidden && last && batch.created_at < last.batch.created_at;
  }

  function place(batch) {
    const row = rows.get(batch.id);
    const next = [...body.children].find((each) => Number(each.dataset.created) < batch.created_at);
    body.insertBefore(row.element, next ?? null);
    sortRows();
  }

  function sum() {
    const open = [...rows.values()].filter((row) => !FINAL.has(row.batch.status));
    const running = open.filter((row) => row.batch.status === "in_progress" && !row.progress?.paused);
    const total = (of) => open.reduce((all, row) => all + (row.progress ? of(row.progress) : 0), 0);
    tiles.running.update(number(running.length), `${open.length} open`);
    tiles.rate.update(rate(total((progress) => (progress.paused ? 0 : progress.lines_per_second))));
    tiles.flight.update(compact(total((progress) => progress.in_flight)));
    const soonest = Math.min(...open.map((row) => row.batch.expires_at));
    tiles.next.update(open.length ? `${duration(soonest - Date.now() / 1000)}` : "none", open.length ? at(soonest) : "");
  }

  const stopListening = listen({ onHello: () => load().catch(complain), onUpdate });
  load().catch(complain);
  const clock = setInterval(() => { for (const row of rows.values()) row.tick(); sum(); }, 1000);
  return () => { stopListening(); clearInterval(clock); };
}

function makeRow(id) {
  const status = badge();
  const bar = progressBar(`Progress of ${id}`);
  const counts = h("span", { class: "counts" });
  const speed = h("td", { class: "number", "data-label": "Lines/s" });
  const window_ = h("td", { "data-label": "Window" });
  const created = h("td", { "data-label": "Created", class: "faint" });
  const name = h("a", { class: "name", href: `#/batches/${encodeURIComponent(id)}` });
  const about = h("span", { class: "faint" });
  const element = h("tr", { "data-id": id },
    h("th", { scope: "row" }, name, about), h("td", { "data-label": "Status" }, status.element),
    h("td", { "data-label": "Progress", class: "wide" }, bar.element, counts), speed, window_, created);
  const row = { element, batch: null, progress: null };
  row.tick = () => {
    const { text, title, urgent } = deadline(row.batch);
    show(window_, text);
    window_.title = title;
    window_.classList.toggle("urgent", urgent);
  };
  row.update = (batch, progress = FINAL.has(batch.status) ? null : row.progress) => {
    row.batch = batch;
    row.progress = progress;
    element.dataset.created = batch.created_at;
    show(name, batch.metadata?.name ?? batch.metadata?.description ?? shortId(id));
    show(about, [batch.model, batch.endpoint.replace("/v1/", "")].filter(Boolean).join(" · "));
    status.update(batch, progress);
    bar.update(batch.request_counts);
    show(counts, countsText(batch.request_counts));
    show(speed, progress && batch.status === "in_progress" && !progress.paused ? rate(progress.lines_per_second) : "");
    show(created, at(batch.created_at));
    row.tick();
  };
  return row;
}

const shortId = (id) => `${id.slice(0, 14)}…${id.slice(-4)}`;

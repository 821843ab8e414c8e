// What works just now: the parts of the engine, its workers, and the model servers as the workers find them.

import { get } from "../api.js";
import { h, show } from "../dom.js";
import { compact, duration, latency, number } from "../format.js";
import { later } from "../live.js";
import { notice, page, tile } from "../parts.js";

const EVERY_MS = 2000;
const PARTS = { database: "Postgres", broker: "Redis", control_workers: "Control workers", run_workers: "Run workers", sweep: "Sweep" };

export function mount(root, { who }) {
  const tiles = { workers: tile("run workers"), flight: tile("calls in flight"), waiting: tile("lines at hand"), refused: tile("429s and refusals") };
  const parts = h("ul", { class: "parts" });
  const servers = h("tbody");
  const workers = h("tbody");
  const trouble = h("div");
  page(root, "Workers");
  if (!who.is_operator) {
    root.append(notice("This page is for keys of the project “default”, the operator's.", "info"));
    return null;
  }
  root.append(h("dl", { class: "tiles" }, Object.values(tiles).map((each) => each.element)), parts, trouble,
    table("Model servers", ["Server", "State", "In flight", "Limit found", "Waiting", "Answered", "429s", "Failed", "Mean latency"], servers),
    table("Workers", ["Process", "Kind", "In flight", "Room for", "Shards", "Up for"], workers));
  let callOff = null;
  let isOver = false;

  async function load() {
    try {
      const [standing, readiness] = await Promise.all([get("/v1/workers"), ready()]);
      if (isOver) return;
      draw(standing, readiness);
      show(trouble);
    } catch (error) {
      show(trouble, notice(error.message));
    }
    if (!isOver) callOff = later(load, EVERY_MS);
  }

  function draw({ data, upstreams }, readiness) {
    const running = data.filter((each) => each.kind === "run");
    const sum = (of) => upstreams.reduce((all, each) => all + of(each), 0);
    tiles.workers.update(number(running.length));
    tiles.flight.update(compact(running.reduce((all, each) => all + each.in_flight, 0)));
    tiles.waiting.update(compact(sum((each) => each.waiting)));
    tiles.refused.update(compact(sum((each) => each.refused)));
    show(parts, Object.entries(PARTS).map(([name, word]) => h("li", {}, h("span", { class: "badge", "data-status": readiness[name] === "ok" ? "good" : "bad" }, `${word}: ${readiness[name] === "ok" ? "ok" : "away"}`))));
    show(servers, upstreams.length ? upstreams.map(serverRow) : none(9, "No model server is set."));
    show(workers, data.length ? data.map(workerRow) : none(6, "No worker has been heard of in the last ten seconds."));
  }

  load();
  return () => { isOver = true; callOff?.(); };
}

async function ready() {
  // It answers 503 when a part is away, and says which.
  const response = await fetch("/readyz");
  return response.json();
}

function table(title, columns, body) {
  return h("section", { class: "card table" }, h("h2", { class: "in-table" }, title), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))), body)));
}

const none = (columns, text) => h("tr", {}, h("td", { colspan: columns, class: "nothing" }, text));
const cell = (value) => h("td", { class: "figure" }, value);

function serverRow(each) {
  const [status, word] = stateOf(each);
  return h("tr", {}, h("th", { scope: "row" }, each.server, each.model ? h("span", { class: "faint" }, ` ${each.model}`) : null),
    h("td", {}, h("span", { class: "badge", "data-status": status }, word)),
    cell(number(each.in_flight)), cell(each.limit === null ? "–" : number(each.limit)), cell(number(each.waiting)), cell(compact(each.succeeded)),
    cell(compact(each.refused)), cell(compact(each.failed)), cell(each.mean_latency_seconds === null ? "–" : latency(each.mean_latency_seconds)));
}

function stateOf(each) {
  if (each.breaker === "open") return ["bad", "Down: asked now and then"];
  if (each.paused_seconds > 0) return ["warn", `Asked to wait ${duration(Math.max(1, each.paused_seconds))}`];
  return each.workers ? ["good", "Answers"] : ["", "Idle"];
}

function workerRow(each) {
  return h("tr", {}, h("th", { scope: "row", class: "mono" }, each.name), h("td", {}, each.is_draining ? `${each.kind}, stopping` : each.kind),
    cell(number(each.in_flight)), cell(each.room ? number(each.room) : "–"), cell(number(each.shards)), cell(duration(each.up_seconds)));
}

// One batch: how it goes, what went wrong, and what can be done with it.

import { batchPath, get, post } from "../api.js";
import { chart } from "../charts.js";
import { h, say, show } from "../dom.js";
import { at, compact, duration, latency, number, percent, rate } from "../format.js";
import { lineViewer } from "../line.js";
import { later, listen } from "../live.js";
import { FINAL, action, badge, confirm, countsText, deadline, endedAt, notice, page, progressBar, tile, wordOf } from "../parts.js";

const REST_MS = 4000;

export function mount(root, { params: [id] }) {
  const state = { batch: null, progress: null, heardAt: 0 };
  const status = badge();
  const bar = progressBar("Lines that have ended");
  const counts = h("p", { class: "counts" });
  const trouble = h("div");
  const about = h("p", { class: "faint about" });
  const tiles = {
    ended: tile("lines ended"), failed: tile("failed"), rate: tile("lines a second"), flight: tile("in flight"),
    retries: tile("calls repeated"), tokens: tile("tokens"), window: tile("window"), forecast: tile("expected end"),
  };
  const buttons = h("div", { class: "buttons" });
  const details = h("dl", { class: "details" });
  const charts = {
    rate: chart("Lines a second", { format: rate, about: "Lines that ended, with and without success" }),
    latency: chart("Latency", { format: latency, about: "How long the last call of each line took" }),
    flight: chart("Calls in flight", { format: (value) => compact(Math.round(value)), about: "The last call of each line that has ended; those under way now at the end" }),
  };
  for (const each of Object.values(charts)) each.element.hidden = true;
  const chartsTrouble = h("p", { class: "nothing" }, "Charts appear with the first lines that end.");
  const viewer = lineViewer(id);
  const faults = h("section", { class: "card", "aria-labelledby": "faults", hidden: true });
  const slowest = h("section", { class: "card", "aria-labelledby": "slowest", hidden: true });
  const complain = (error) => show(trouble, notice(error.message));

  const heading = page(root, id);
  heading.classList.add("id");
  heading.parentElement.append(status.element);
  root.append(about, trouble, buttons, h("div", { class: "card" }, bar.element, counts),
    h("dl", { class: "tiles" }, Object.values(tiles).map((each) => each.element)),
    h("section", { "aria-label": "Charts", class: "charts" }, Object.values(charts).map((each) => each.element)), chartsTrouble,
    faults, slowest, viewer.element,
    h("section", { class: "card", "aria-labelledby": "details" }, h("h2", { id: "details" }, "Details"), details));

  const order = (verb) => async () => {
    take(await post(batchPath(id, `/${verb}`)));
    await load();
  };
  const orders = {
    pause: action("Pause", order("pause"), { onError: complain }),
    resume: action("Resume", order("resume"), { onError: complain, kind: "primary" }),
    cancel: action("Cancel", async () => {
      const isSure = await confirm("Cancel this batch? Lines that have ended are kept; the others will not be called.", { yes: "Cancel the batch", no: "Let it run" });
      if (isSure) await order("cancel")();
    }, { onError: complain, kind: "danger" }),
    retry: action("Retry what failed", async () => {
      const made = await post(batchPath(id, "/retry"), {});
      location.hash = `#/batches/${made.id}`;
    }, { onError: complain }),
  };
  const downloads = {
    output: h("a", { class: "button", download: "" }, "Download output"),
    errors: h("a", { class: "button", download: "" }, "Download errors"),
  };
  buttons.append(...Object.values(downloads), ...Object.values(orders));

  function take(batch, progress = state.progress) {
    state.batch = batch;
    state.progress = progress;
    draw();
  }

  async function load() {
    const began = performance.now();
    const [batch, progress] = await Promise.all([get(batchPath(id)), get(batchPath(id, "/progress"))]);
    show(trouble);
    if (state.heardAt < began) take(batch, progress);
    await loadRest();
  }

  function draw() {
    const { batch, progress } = state;
    const isFinal = FINAL.has(batch.status);
    const { completed, failed, total } = batch.request_counts;
    status.update(batch, progress);
    bar.update(batch.request_counts);
    show(counts, countsText(batch.request_counts));
    show(about, [batch.metadata?.name ?? batch.metadata?.description, batch.model, batch.endpoint].filter(Boolean).join(" · "));
    tiles.ended.update(compact(completed + failed), `${number(completed + failed)} of ${number(total)}`);
    tiles.failed.update(compact(failed), number(failed));
    const seconds = Math.max(1, (endedAt(batch) ?? 0) - (batch.in_progress_at ?? 0));
    tiles.rate.update(isFinal ? (batch.in_progress_at ? rate((completed + failed) / seconds) : "–") : rate(progress?.paused ? 0 : (progress?.lines_per_second ?? 0)), isFinal ? "over all" : "just now");
    tiles.flight.update(isFinal ? "–" : compact(progress?.in_flight ?? 0));
    tiles.retries.update(compact(progress?.retries ?? 0));
    tiles.tokens.update(compact(progress?.usage.total_tokens ?? 0), progress ? `${number(progress.usage.input_tokens)} in, ${number(progress.usage.output_tokens)} out` : "");
    tick();
    const isOpen = ["validating", "in_progress"].includes(batch.status);
    orders.pause.hidden = !isOpen || progress?.paused;
    orders.resume.hidden = !isOpen || !progress?.paused;
    orders.cancel.hidden = !isOpen;
    orders.retry.hidden = !(isFinal && batch.error_file_id);
    link(downloads.output, isFinal ? batch.output_file_id : completed > 0, "output");
    link(downloads.errors, isFinal ? batch.error_file_id : failed > 0, "errors");
    drawDetails();
  }

  async function loadHistory() {
    const history = await get(batchPath(id, "/history"));
    const { points, interval_seconds: width } = history;
    const isThere = points.length > 0;
    chartsTrouble.hidden = isThere;
    for (const each of Object.values(charts)) each.element.hidden = !isThere;
    if (isThere) drawCharts(FINAL.has(state.batch.status) ? points : soFar(points, width), width);
    drawSlowest(history.slowest);
  }

  /** Of a batch that runs the last interval is not over, and calls under way are missing: there the workers' word counts. */
  function soFar(points, width) {
    const whole = points.length > 2 ? points.slice(0, -1) : points;
    const longest = whole.findLast((point) => point.latency_p95 !== null)?.latency_p95 ?? 0;
    const known = Math.max(0, whole.length - Math.ceil(longest / width));
    const now = state.progress?.in_flight ?? 0;
    return whole.map((point, index) => (index < known ? point : { ...point, in_flight: Math.max(point.in_flight, now) }));
  }

  function drawCharts(points, width) {
    const seconds = points.length * width;
    const column = (of) => points.map(of);
    charts.rate.update({ seconds, series: [
      { name: "succeeded", kind: "one filled", values: column((point) => point.completed / width) },
      { name: "failed", kind: "bad", values: column((point) => point.failed / width) },
    ] });
    charts.latency.update({ seconds, series: [
      { name: "half of them", kind: "one", values: column((point) => point.latency_p50) },
      { name: "95 of 100", kind: "two", values: column((point) => point.latency_p95) },
    ] });
    charts.flight.update({ seconds, series: [{ name: "in flight", kind: "three filled", values: column((point) => point.in_flight) }] });
  }

  function drawSlowest(lines) {
    slowest.hidden = !lines.length;
    show(slowest, h("h2", { id: "slowest" }, "Slowest lines"),
      h("div", { class: "scroll" }, h("table", {},
        h("thead", {}, h("tr", {}, ["Line", "Took", "Ended"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, lines.slice(0, 10).map((line) => h("tr", {}, h("th", { scope: "row" }, viewer.button(line.line)),
          h("td", {}, latency(line.seconds)), h("td", {}, line.succeeded ? "well" : "with an error")))))));
  }

  async function loadFaults() {
    const { batch } = state;
    if (batch.status === "failed") return drawInvalid(batch.errors?.data ?? []);
    if (!batch.request_counts.failed && !batch.error_file_id) return show(faults);
    const found = await get(batchPath(id, "/failures"));
    faults.hidden = !found.data.length;
    show(faults, h("h2", { id: "faults" }, "Errors"),
      found.is_whole ? null : h("p", { class: "faint" }, `Of the first ${number(found.lines_read)} lines that failed.`),
      found.data.map((group) => h("details", { class: "fault" },
        h("summary", {}, h("span", { class: "badge", "data-status": "bad" }, group.code), ` ${number(group.count)} × `, h("span", {}, group.message)),
        h("div", { class: "buttons" }, group.examples.map((each) => viewer.button(each.line, `Line ${number(each.line)}: ${each.custom_id}`))))));
  }

  function drawInvalid(errors) {
    faults.hidden = !errors.length;
    show(faults, h("h2", { id: "faults" }, "Why the input was refused"),
      h("p", { class: "faint" }, "Nothing was called. Correct the lines and send the file again."),
      h("ul", { class: "plain" }, errors.map((error) => h("li", {}, h("p", {}, h("strong", {}, error.line ? `Line ${number(error.line)}: ` : ""), error.message, error.param ? h("span", { class: "faint" }, ` (${error.param})`) : null),
        error.line ? viewer.button(error.line, "Show the line") : null))));
  }

  async function loadRest() {
    const began = performance.now();
    await Promise.all([loadHistory(), loadFaults()]);
    const took = performance.now() - began;
    // What is open is drawn anew; never so often that it would be felt.
    state.callOff?.();
    if (!state.isOver && !FINAL.has(state.batch.status)) state.callOff = later(() => loadRest().catch(complain), Math.max(REST_MS, 20 * took));
  }

  function link(element, isThere, kind) {
    element.hidden = !isThere;
    element.href = batchPath(id, `/${kind}`);
    element.download = `${id}_${kind}.jsonl`;
    const isPart = !FINAL.has(state.batch.status);
    show(element, `Download ${kind}${isPart ? " so far" : ""}`);
  }

  function tick() {
    const { batch, progress } = state;
    if (!batch) return;
    const { text, title, urgent } = deadline(batch);
    tiles.window.update(text, title);
    tiles.window.element.classList.toggle("urgent", urgent);
    const end = progress?.forecast_end_at;
    tiles.forecast.update(FINAL.has(batch.status) ? "–" : end ? `in ${duration(end - Date.now() / 1000)}` : "not known yet", end ? at(end) : "");
    tiles.forecast.element.classList.toggle("urgent", progress?.forecast_in_window === false);
  }

  function drawDetails() {
    const { batch } = state;
    const rows = [
      ["Created", at(batch.created_at)], ["Began", at(batch.in_progress_at)], ["Ended", at(endedAt(batch))],
      ["Status", wordOf(batch.status)], ["Completion window", batch.completion_window], ["Window closes", at(batch.expires_at)],
      ["Input file", batch.input_file_id], ["Output file", batch.output_file_id], ["Error file", batch.error_file_id],
      ...Object.entries(batch.metadata ?? {}).map(([key, value]) => [`metadata: ${key}`, value]),
    ];
    show(details, rows.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  const stopListening = listen({
    onHello: () => load().catch(complain),
    onUpdate: (update) => {
      if (update.batch.id !== id) return;
      state.heardAt = performance.now();
      const wasFinal = state.batch && FINAL.has(state.batch.status);
      take(update.batch, update.progress);
      if (!wasFinal && FINAL.has(update.batch.status)) {
        say(`This batch is now: ${wordOf(update.batch.status)}`);
        load().catch(complain);
      }
    },
  });
  load().catch(complain);
  const clock = setInterval(tick, 1000);
  return () => {
    state.isOver = true;
    stopListening();
    clearInterval(clock);
    state.callOff?.();
    for (const each of Object.values(charts)) each.stop();
  };
}

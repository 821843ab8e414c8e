// Lines over time, drawn as SVG: as wide as there is room, with a value for the place that is pointed at, and the
// same numbers in words for those who cannot see it.

import { h, show } from "./dom.js";
import { duration } from "./format.js";

const HEIGHT = 150;
const MARGIN = { top: 10, right: 8, bottom: 22, left: 46 };

/** A chart. `update({ seconds, series })`: each series has a name, values (null where there is none), and a kind. */
export function chart(title, { format, about = "" }) {
  const legend = h("p", { class: "legend" });
  const figure = h("div", { class: "plot" });
  const readout = h("p", { class: "readout", "aria-hidden": "true" });
  const element = h("figure", { class: "card chart" }, h("figcaption", {}, h("h3", {}, title), readout), figure, legend);
  if (about) element.title = about;
  let data = null;
  const watcher = new ResizeObserver(() => data && draw());
  watcher.observe(figure);

  function draw() {
    const width = Math.max(220, Math.floor(figure.clientWidth));
    const { seconds, series } = data;
    const count = series[0].values.length;
    const most = Math.max(...series.flatMap((each) => each.values.filter((value) => value !== null)), 0);
    const [top, ticks] = scale(most);
    const x = (index) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * (count > 1 ? index / (count - 1) : 0.5));
    const y = (value) => HEIGHT - MARGIN.bottom - ((HEIGHT - MARGIN.top - MARGIN.bottom) * value) / top;
    const grid = ticks.map((value) => h("g", { class: "grid" },
      h("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      h("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value))));
    const times = [0, 0.5, 1].map((part) => h("text", {
      x: MARGIN.left + part * (width - MARGIN.left - MARGIN.right), y: HEIGHT - 5, class: "time",
      "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, part ? duration(part * seconds) : "0"));
    const lines = series.flatMap((each) => paths(each, x, y));
    const cursor = h("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    const drawing = h("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": inWords() }, grid, times, lines, cursor);
    drawing.addEventListener("pointermove", (event) => {
      const place = (event.offsetX - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
      const index = Math.max(0, Math.min(count - 1, Math.round(place * (count - 1))));
      cursor.setAttribute("x1", x(index));
      cursor.setAttribute("x2", x(index));
      cursor.setAttribute("visibility", "visible");
      const values = series.filter((each) => each.values[index] !== null).map((each) => `${each.name} ${format(each.values[index])}`);
      show(readout, `after ${duration(count > 1 ? (index / (count - 1)) * seconds : seconds)}: ${values.join(", ") || "nothing"}`);
    });
    drawing.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      show(readout, latest());
    });
    show(figure, drawing);
    show(readout, latest());
    show(legend, series.length > 1 ? series.map((each) => h("span", { class: each.kind }, each.name)) : []);
  }

  const last = (values) => values.findLast((value) => value !== null);
  const latest = () => data.series.map((each) => last(each.values) ?? null).filter((value) => value !== null).map(format).join(" / ");

  function inWords() {
    const words = data.series.map((each) => {
      const values = each.values.filter((value) => value !== null);
      if (!values.length) return `${each.name}: nothing yet`;
      return `${each.name}: from ${format(Math.min(...values))} to ${format(Math.max(...values))}, last ${format(values.at(-1))}`;
    });
    return `${title} over ${duration(data.seconds)}. ${words.join(". ")}.`;
  }

  return {
    element,
    update: (fresh) => { data = fresh; draw(); },
    stop: () => watcher.disconnect(),
  };
}

/** A line, broken where there is no value; a value with none beside it is a dot. */
function paths({ values, kind }, x, y) {
  const parts = [];
  let run = [];
  const end = () => {
    if (run.length === 1) parts.push(h("circle", { class: kind, cx: x(run[0]), cy: y(values[run[0]]), r: 2.5 }));
    if (run.length > 1) {
      const line = run.map((index) => `${x(index).toFixed(1)} ${y(values[index]).toFixed(1)}`).join("L");
      if (kind.includes("filled")) parts.push(h("path", { class: `area ${kind}`, d: `M${x(run[0]).toFixed(1)} ${y(0)}L${line}L${x(run.at(-1)).toFixed(1)} ${y(0)}Z` }));
      parts.push(h("path", { class: `stroke ${kind}`, d: `M${line}` }));
    }
    run = [];
  };
  values.forEach((value, index) => (value === null ? end() : run.push(index)));
  end();
  return parts;
}

/** A round number at or above the highest value, and the lines of the grid. */
function scale(most) {
  if (!most) return [1, [0, 1]];
  const power = 10 ** Math.floor(Math.log10(most));
  const top = [1, 2, 2.5, 5, 10].map((step) => step * power).find((each) => each >= most);
  return [top, [0, top / 2, top]];
}

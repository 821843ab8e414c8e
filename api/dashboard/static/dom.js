// Making elements. Everything that comes from a server becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";
const IN_SVG = new Set(["svg", "path", "line", "rect", "circle", "text", "g", "title", "desc"]);

/** An element: `h("button", { class: "quiet", onclick: f }, "Pause")`. Null and false are left out. */
export function h(tag, props = {}, ...children) {
  const element = IN_SVG.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Show this in an element, and nothing else; does not touch it if the text is there already. */
export function show(element, ...children) {
  if (children.length === 1 && typeof children[0] === "string") {
    if (element.textContent !== children[0] || element.children.length) element.textContent = children[0];
    return element;
  }
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

/** Tell a screen reader. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

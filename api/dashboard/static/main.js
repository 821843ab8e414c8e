// The frame: who is signed in, which page is shown, the theme.

import { abandon, session, signOut } from "./api.js";
import { h, show } from "./dom.js";
import * as live from "./live.js";
import { notice } from "./parts.js";

const PAGES = [
  [/^#\/batches\/([^/]+)$/, "batches", () => import("./views/batch.js")],
  [/^#\/new$/, "new", () => import("./views/upload.js")],
  [/^#\/workers$/, "workers", () => import("./views/workers.js")],
  [/^/, "batches", () => import("./views/batches.js")],
];
const LIVE = { live: ["Live", "Changes show as they happen"], away: ["Reconnecting", "The engine does not answer just now"] };

const root = document.getElementById("main");
const nav = document.getElementById("nav");
const signOutButton = document.getElementById("sign-out");
const liveLabel = document.getElementById("live");
let who = null;
let leave = null;
let visits = 0;

async function showPage({ first = false } = {}) {
  const visit = ++visits;
  leavePage();
  nav.hidden = signOutButton.hidden = !who.project;
  const [pattern, name, load] = who.project
    ? PAGES.find(([each]) => each.test(location.hash))
    : [/^/, "", () => import("./views/signin.js")];
  for (const link of nav.querySelectorAll("a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const view = await load();
  if (visit !== visits) return;
  const params = pattern.exec(location.hash)?.slice(1).map(decodeURIComponent) ?? [];
  leave = view.mount(root, { params, who, onSignedIn }) ?? null;
  if (!first) root.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function leavePage() {
  leave?.();
  leave = null;
  abandon();
}

function onSignedIn(found) {
  who = found;
  live.start();
  showPage();
}

function onSignedOut() {
  if (!who?.project) return;
  who = { ...who, project: null };
  live.stop();
  showPage();
}

function setUpTheme() {
  const button = document.getElementById("theme");
  const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => {
    show(button, isDark() ? "Light" : "Dark");
    button.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
  };
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("overnight-theme", next);
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
}

addEventListener("hashchange", () => who && showPage());
addEventListener("overnight:signed-out", onSignedOut);
addEventListener("overnight:live", ({ detail }) => {
  const [text, title] = LIVE[detail] ?? ["", ""];
  liveLabel.hidden = !text;
  liveLabel.dataset.state = detail;
  liveLabel.title = title;
  show(liveLabel, text);
});
signOutButton.addEventListener("click", async () => {
  leavePage();
  live.stop();
  await signOut().catch(() => null);
  onSignedOut();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  root.focus();
});

setUpTheme();
try {
  who = await session();
  if (who.project) live.start();
  await showPage({ first: true });
} catch (error) {
  root.replaceChildren(h("h1", {}, "Overnight"), notice(error.message));
}

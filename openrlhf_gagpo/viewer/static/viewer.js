// Keys, theme, pieces loaded on demand, and following a live run. Every page works without it, except for the tokens.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);

// Theme.

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* Storage may be off. */ }
}

// Pieces on demand: prompt and tokens of a step.

async function load(details) {
  const place = details.querySelector(".fill");
  if (!details.open || details.dataset.loaded) return;
  details.dataset.loaded = "yes";
  try {
    const answer = await fetch(details.dataset.src);
    if (!answer.ok) throw new Error(String(answer.status));
    place.innerHTML = await answer.text();
  } catch {
    delete details.dataset.loaded;
    place.textContent = "The server does not answer; is gagpo view still running?";
  }
}

// Rows and keys.

let current = -1;

const rows = () => all("[data-row]");

function select(index, scroll = true) {
  const list = rows();
  if (!list.length) return;
  list.forEach((row) => row.classList.remove("current"));
  current = Math.min(Math.max(index, 0), list.length - 1);
  list[current].classList.add("current");
  if (scroll) list[current].scrollIntoView({ block: "nearest" });
}

function follow(selector) {
  const link = one(selector);
  if (link) link.click();
}

function openTokens() {
  const details = rows()[Math.max(current, 0)]?.querySelector("details.tokens");
  if (details) details.open = !details.open;
}

const KEYS = {
  j: () => select(current + 1),
  k: () => select(current < 0 ? 0 : current - 1),
  Enter: () => rows()[current]?.querySelector("a.open")?.click(),
  ArrowLeft: () => follow("a[rel=prev]"),
  ArrowRight: () => follow("a[rel=next]"),
  p: openTokens,
  g: () => follow("#group"),
  u: () => follow("nav a[rel=up]"),
  "/": () => one("#filter input[type=search]")?.select(),
  t: toggleTheme,
  "?": () => one("#help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || one("#help")?.open) return;
  const typing = event.target.closest("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  // Enter belongs to what has the focus, and arrows to what can be scrolled by them.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  if (event.key.startsWith("Arrow") && event.target.closest(".scroll")) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// Following what is still being written.

const pulse = one("#pulse");
const PAUSE = 2000;
let seen = null;

async function refresh() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const [mine, theirs] = [one("#live"), page.querySelector("#live")];
  if (!mine || !theirs) return;
  const open = all("#live .scroll").map((item) => item.scrollLeft);
  mine.replaceWith(document.adoptNode(theirs));
  all("#live .scroll").forEach((item, index) => { item.scrollLeft = open[index] ?? 0; });
  if (current >= 0) select(current, false);
}

async function poll() {
  if (document.hidden) return;
  try {
    const answer = await fetch(`/stamp?of=${encodeURIComponent(document.body.dataset.of)}`);
    const { stamp } = await answer.json();
    if (seen !== null && stamp !== seen) await refresh();
    seen = stamp;
    pulse.textContent = "live";
    pulse.className = "soft on";
  } catch {
    pulse.textContent = "not connected";
    pulse.className = "soft off";
  }
}

async function watch() {
  await poll();
  setTimeout(watch, PAUSE);
}

document.addEventListener("change", (event) => {
  if (event.target.closest("#filter select, #compare select, #pick input")) event.target.form.requestSubmit();
});
document.addEventListener("submit", (event) => {
  // Empty fields stay out of the address.
  for (const field of event.target.querySelectorAll("input, select")) if (!field.value) field.disabled = true;
});
addEventListener("pageshow", () => all("form [disabled]").forEach((field) => { field.disabled = false; }));
document.addEventListener("toggle", (event) => {
  if (event.target.matches?.("details.tokens[data-src]")) load(event.target);
}, true);
one("#theme")?.addEventListener("click", toggleTheme);
one("#keys")?.addEventListener("click", () => one("#help").showModal());
if (location.hash.startsWith("#step-")) select(rows().findIndex((row) => `#${row.id}` === location.hash), false);
if (pulse) watch();

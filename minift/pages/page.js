// Shared by every page that minift writes. All that a page shows is in `data`, which it carries; it asks nobody for anything.
"use strict";

let data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text is always set as text, never as markup. */
const element = (name, attributes = {}, ...children) =>
  furnished(document.createElement(name), attributes, children);

/** The same of an SVG. */
const svg = (name, attributes = {}, ...children) =>
  furnished(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function furnished(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const number = (value) =>
  value === null ? "not a number" : value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5
    ? value.toPrecision(4) : value.toExponential(2);

/** The system's theme, unless the reader chooses; `changed` is called after each change, and at first. */
function followTheme(changed) {
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    changed();
  };
  byId("theme").addEventListener("click", () =>
    show(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  systemIsDark.addEventListener("change", () => show(systemIsDark.matches ? "dark" : "light"));
  show(systemIsDark.matches ? "dark" : "light");
}


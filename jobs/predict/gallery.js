"use strict";
// Text of the data only ever becomes the text of a node or the value of an attribute.
const { images, classes } = JSON.parse(document.getElementById("data").textContent);
const BATCH = 60;
const [grid, chips, count, clear, more, tip, search, least, leastShown, order] = [
  "grid", "classes", "count", "clear", "more", "tip", "search", "least", "least-shown", "order",
].map((id) => document.getElementById(id));
const chosen = new Set();
let found = [];
let drawn = 0;

function element(name, text, attributes = {}) {
  const isDrawing = name === "svg" || name === "path";
  const made = isDrawing
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  if (text) made.textContent = text;
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  return made;
}

const passes = ([category, score]) =>
  (score === null || score >= least.value) && (!chosen.size || chosen.has(category));

function figure(image) {
  const [width, height] = image.size;
  const made = element("figure");
  const link = element("a", "", { href: image.picture });
  link.append(element("img", "", { src: image.thumbnail, alt: image.name, loading: "lazy" }));
  const svg = element("svg", "", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  link.append(svg);
  for (const region of image.regions) {
    const [category, score, outline] = region;
    const path = element("path", "", { d: outline });
    path.dataset.label = classes[category][0] + (score === null ? "" : ` ${score.toFixed(2)}`);
    if (chosen.size && passes(region)) path.classList.add("chosen");
    svg.append(path);
  }
  made.append(link, element("figcaption", image.name));
  return made;
}

function draw() {
  grid.append(...found.slice(drawn, drawn + BATCH).map(figure));
  drawn = Math.min(drawn + BATCH, found.length);
  more.hidden = drawn === found.length;
}

function lowest(image) {
  return Math.min(...image.regions.filter(passes).map(([, score]) => score ?? 1), 1);
}

const orders = {
  given: null,
  low: (a, b) => lowest(a) - lowest(b),
  many: (a, b) => b.regions.filter(passes).length - a.regions.filter(passes).length,
  few: (a, b) => a.regions.filter(passes).length - b.regions.filter(passes).length,
};

function show() {
  const part = search.value.toLowerCase();
  const isFiltered = chosen.size || least.value > 0;
  found = images.filter(
    (image) => image.name.toLowerCase().includes(part) && (!isFiltered || image.regions.some(passes)),
  );
  if (orders[order.value]) found.sort(orders[order.value]);
  leastShown.textContent = Number(least.value).toFixed(2);
  count.textContent = `${found.length} of ${images.length} images`;
  clear.hidden = !(isFiltered || part);
  grid.replaceChildren();
  drawn = 0;
  draw();
}

const counts = new Map();
for (const image of images)
  for (const category of new Set(image.regions.map(([category]) => category)))
    counts.set(category, (counts.get(category) ?? 0) + 1);
for (const [category, number] of [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0])) {
  const [name, color] = classes[category];
  const chip = element("button", "", { "aria-pressed": "false" });
  const dot = element("i");
  dot.style.background = `rgb(${color.join(" ")})`;
  chip.append(dot, name, " ", element("small", String(number)));
  chip.addEventListener("click", () => {
    if (!chosen.delete(category)) chosen.add(category);
    chip.setAttribute("aria-pressed", chosen.has(category));
    show();
  });
  chips.append(chip);
}
clear.addEventListener("click", () => {
  chosen.clear();
  for (const chip of chips.children) chip.setAttribute("aria-pressed", "false");
  search.value = "";
  least.value = 0;
  show();
});
for (const input of [search, least, order]) input.addEventListener("input", show);
more.addEventListener("click", draw);
grid.addEventListener("pointermove", (event) => {
  const label = event.target.dataset.label;
  tip.hidden = !label;
  tip.textContent = label ?? "";
  tip.style.left = `${event.clientX + 14}px`;
  tip.style.top = `${event.clientY + 14}px`;
});
grid.addEventListener("pointerleave", () => (tip.hidden = true));
show();

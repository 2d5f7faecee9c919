"use strict";
// Text of the data only ever becomes the text of a node or the value of an attribute.
const data = JSON.parse(document.getElementById("data").textContent);
const names = data.classes.map(([name]) => name);
const [table, search, choice] = ["classes", "search", "chosen"].map((id) => document.getElementById(id));
let chosen = null;
let sorted = { column: "images", down: true };

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  return made;
}

const shown = (value, digits = 1) => (value === null || value === undefined ? "" : value.toFixed(digits));

const columns = [
  ["class", (row, c) => names[c]],
  ...data.columns.map((name) => [name, (row) => row[name]]),
  ["images", (row) => row.images],
  ["predicted in", (row) => row.predicted_in],
  ["highest score", (row) => row.highest_score],
];

function bar(value, most) {
  const track = element("div", undefined, { class: "track" });
  const filled = element("i");
  filled.style.width = `${most ? (100 * Math.max(value ?? 0, 0)) / most : 0}%`;
  track.append(filled);
  return track;
}

function classRow(c, most) {
  const row = data.rows[c];
  const made = element("tr", undefined, { "aria-selected": c === chosen });
  const [name, color] = data.classes[c];
  const first = element("td");
  const dot = element("i", undefined, { class: "dot" });
  dot.style.background = `rgb(${color.join(" ")})`;
  first.append(dot, name);
  made.append(first);
  for (const column of data.columns) made.append(element("td", shown(row[column])));
  const score = element("td");
  score.append(bar(row[data.columns[0]], 100));
  const images = element("td");
  images.append(bar(row.images, most));
  made.append(score, element("td", row.images), images, element("td", row.predicted_in));
  made.append(element("td", shown(row.highest_score, 2)));
  made.addEventListener("click", () => choose(c === chosen ? null : c));
  return made;
}

function drawClasses() {
  const head = table.tHead.rows[0];
  head.replaceChildren();
  for (const [name] of columns) {
    const cell = element("th");
    const button = element("button", name);
    if (name === sorted.column) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    button.addEventListener("click", () => {
      sorted = { column: name, down: name === sorted.column ? !sorted.down : name !== "class" };
      drawClasses();
    });
    cell.append(button);
    head.append(cell);
    if (name === data.columns.at(-1) || name === "images") head.append(element("th"));
  }
  const value = columns.find(([name]) => name === sorted.column)[1];
  const key = (c) => value(data.rows[c], c) ?? -1;
  const part = search.value.toLowerCase();
  const order = names.map((_, c) => c).filter((c) => names[c].toLowerCase().includes(part));
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  order.sort((a, b) => (sorted.down ? -1 : 1) * compare(key(a), key(b)));
  const most = Math.max(...data.rows.map((row) => row.images));
  table.tBodies[0].replaceChildren(...order.map((c) => classRow(c, most)));
}

function counted(classes) {
  const counts = new Map();
  for (const c of classes) counts.set(c, (counts.get(c) ?? 0) + 1);
  return [...counts].map(([c, n]) => (n > 1 ? `${names[c]} ×${n}` : names[c])).join(", ");
}

function figure(pictures, captions, text) {
  const made = element("figure");
  const row = element("div");
  pictures.forEach((source, n) => row.append(element("img", undefined, { src: source, alt: captions[n] })));
  made.append(row, element("figcaption", text));
  return made;
}

function worstImage(one) {
  const parts = [`${one.key}: ${data.quality} ${shown(one.quality)}`];
  if (one.missed.length) parts.push(`missed ${counted(one.missed)}`);
  if (one.invented.length) parts.push(`invented ${counted(one.invented)}`);
  return figure(one.pictures, ["image", "truth", "prediction"], parts.join("; "));
}

function mistake(one) {
  let truth = "the truth has nothing there";
  if (one.nearest >= 0) truth = `the truth has ${names[one.nearest]} (IoU ${one.iou.toFixed(2)})`;
  const text = `${names[one.category]} ${one.score.toFixed(2)}; ${truth}; ${one.key}`;
  return figure(one.pictures, ["prediction", "truth"], text);
}

function drawFigures() {
  const of = {
    worst: [data.worst, worstImage, (one) => [...one.missed, ...one.invented]],
    mistakes: [data.mistakes, mistake, (one) => [one.category, one.nearest]],
  };
  for (const [id, [list, draw, classesOf]] of Object.entries(of)) {
    const found = list.filter((one) => chosen === null || classesOf(one).includes(chosen));
    document.getElementById(id)?.replaceChildren(...found.map(draw));
  }
}

function choose(c) {
  chosen = c;
  choice.hidden = c === null;
  choice.firstElementChild.textContent = c === null ? "" : `Only ${names[c]}`;
  drawClasses();
  drawFigures();
}

search.addEventListener("input", drawClasses);
choice.lastElementChild.addEventListener("click", () => choose(null));
choose(null);

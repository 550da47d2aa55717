// Everything that is read from the data goes into the page as text or as an attribute, never as markup.
"use strict";
const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "image", "clipPath", "rect", "defs", "pattern"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- colours: as the system has them, or one of the two

const themes = ["auto", "light", "dark"];
function show_theme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").querySelector("span").textContent = theme;
  $("theme").setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
}
let theme = "auto";
// A page opened from a file may have no storage; then the choice lasts as long as the page.
try { theme = localStorage.getItem("tokentrim-theme") || "auto"; } catch { /* stays auto */ }
show_theme(themes.includes(theme) ? theme : "auto");
$("theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  show_theme(theme);
  try { localStorage.setItem("tokentrim-theme", theme); } catch { /* see above */ }
});

// ---- tables: numbers begin with the largest, names with the first; what has no value stays last

function sort_by(table, header) {
  const column = header.cellIndex;
  const rows = [...table.tBodies[0].rows];
  const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const filled = rows.filter((row) => key(row) !== "");
  const numeric = filled.length > 0 && filled.every((row) => !Number.isNaN(Number(key(row))));
  const before = header.ariaSort;
  const cycle = numeric ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
  const now = cycle[(cycle.indexOf(before) + 1) % 3];
  const sign = now === "ascending" ? 1 : -1;
  const place = (row) => Number(row.dataset.order);
  for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
  header.ariaSort = now;
  rows.sort((a, b) => {
    if (now === "none") return place(a) - place(b);
    const [left, right] = [key(a), key(b)];
    if ((left === "") !== (right === "")) return left === "" ? 1 : -1;
    const order = numeric ? Number(left) - Number(right) : left.localeCompare(right, "en", { numeric: true });
    return sign * order || place(a) - place(b);
  });
  table.tBodies[0].append(...rows);
}
for (const table of document.querySelectorAll("table.sortable"))
  for (const button of table.querySelectorAll("thead button"))
    button.addEventListener("click", () => sort_by(table, button.closest("th")));

for (const groups of document.querySelectorAll(".groups")) {
  const boxes = [...groups.querySelectorAll("input")];
  const apply = () => {
    $(groups.dataset.for).dataset.hide = boxes.filter((box) => !box.checked).map((box) => box.value).join(" ");
  };
  groups.addEventListener("change", apply);
  apply(); // a browser that comes back to the page keeps what was ticked
}

// ---- charts: the nearest point speaks, and its method stands out in all charts

const charts = [...document.querySelectorAll(".front svg")];
const REACH = 28; // pixels between the pointer and a point that it means
const ON_IT = 4; // pixels between points that no pointer can tell apart

function light(methods) {
  for (const chart of charts) {
    chart.classList.toggle("chosen", methods.length > 0);
    for (const part of chart.querySelectorAll("[data-m]"))
      part.classList.toggle("lit", methods.includes(part.dataset.m));
  }
}

// Several points may lie on each other; then all of them speak.
function tell(...points) {
  for (const old of document.querySelectorAll(".point-now")) old.classList.remove("point-now");
  $("tip").hidden = points.length === 0;
  light(points.map((point) => point.closest(".series").dataset.m));
  if (points.length === 0) return;
  for (const point of points) point.classList.add("point-now");
  const tip = $("tip"), box = points[0].getBoundingClientRect();
  tip.textContent = points.map((point) => point.dataset.said).join("\n\n");
  const left = Math.min(Math.max(8, box.right + 12), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 10}px`;
}

for (const chart of charts) {
  const points = [...chart.querySelectorAll(".series .marker")];
  const nearest = (event) => {
    const gaps = points.map((point) => {
      const box = point.getBoundingClientRect();
      return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    });
    const least = Math.min(...gaps);
    return least > REACH ? [] : points.filter((_, place) => gaps[place] <= least + ON_IT);
  };
  const at = (event) => {
    const label = event.target.closest(".label");
    if (label === null) return tell(...nearest(event));
    tell();
    light([label.dataset.m]);
  };
  chart.addEventListener("pointermove", at);
  chart.addEventListener("pointerdown", at);
  chart.addEventListener("pointerleave", () => tell());
  chart.addEventListener("blur", () => tell());
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") tell();
    if (step === undefined || points.length === 0) return;
    event.preventDefault();
    const now = points.findIndex((point) => point.classList.contains("point-now"));
    tell(points[now < 0 ? 0 : (now + step + points.length) % points.length]);
  });
}

// ---- gallery

const data = JSON.parse($("data").textContent);

function from_runs(text) {
  const found = [];
  for (const run of text.split(" ")) {
    if (run === "") continue;
    const [first, last] = run.split("-").map(Number);
    for (let n = first; n <= (last ?? first); n++) found.push(n);
  }
  return found;
}

// What a layer kept in the prompt, and what its cache holds at a step; see tokentrim/runs/kept.py.
function kept_at(line, layer, step) {
  const stage = line.prefill.filter(([first]) => first <= layer).at(-1);
  const prompt = new Set(from_runs(stage[1])), now = new Set(prompt);
  for (const [layers, changes] of line.evictions) {
    if (!from_runs(layers).includes(layer)) continue;
    for (const [at, tokens] of changes) {
      if (at > step) continue;
      for (const token of from_runs(tokens)) if (!now.delete(token)) now.add(token);
    }
  }
  return { prompt, now };
}

// Patches of one plane as paths: areas in runs along rows, and the line around them.
function area(places, cols) {
  const sorted = [...places].sort((a, b) => a - b);
  let path = "";
  for (let n = 0; n < sorted.length; n++) {
    const first = sorted[n], row = Math.floor(first / cols);
    let length = 1;
    while (sorted[n + 1] === first + length && Math.floor(sorted[n + 1] / cols) === row) { length++; n++; }
    path += `M${first % cols} ${row}h${length}v1h-${length}z`;
  }
  return path;
}
function outline(places, cols, rows) {
  let path = "";
  for (const place of places) {
    const x = place % cols, y = Math.floor(place / cols);
    if (y > 0 && !places.has(place - cols)) path += `M${x} ${y}h1`;
    if (y < rows - 1 && !places.has(place + cols)) path += `M${x} ${y + 1}h1`;
    if (x > 0 && !places.has(place - 1)) path += `M${x} ${y}v1`;
    if (x < cols - 1 && !places.has(place + 1)) path += `M${x + 1} ${y}v1`;
  }
  return path;
}
function strokes(places, cols) {
  let path = "";
  for (const place of places) path += `M${place % cols} ${Math.floor(place / cols) + 1}l1 -1`;
  return path;
}

function name_of(line) {
  if (line.method === "text-only") return `${line.method}@${line.boundary}`;
  return line.seed ? `${line.method} (seed ${line.seed})` : line.method;
}
const per_cent = (share) => `${Math.round(100 * share)} %`;

class Card {
  constructor(question, line, image, number) {
    const look = data.look[line.method];
    Object.assign(this, { question, line, image, grid: question.cells[line.cells] });
    this.places = [];
    for (const [plane, first, count] of this.grid.runs)
      for (let n = 0; n < count; n++) this.places.push([plane, first + n]);
    const swatch = element("svg", { class: "swatch", viewBox: "-8 -8 16 16", "aria-hidden": "true" },
      element("path", { class: "marker", d: look.marker }));
    const caption = element("figcaption", {}, swatch, element("span", {}, name_of(line)));
    if (look.role !== "method")
      caption.append(element("span", { class: "tag", title: look.about }, look.role === "bound" ? "bound" : look.role === "reference" ? "reference" : "control"));
    this.picture = element("svg", { class: "patches", role: "img", preserveAspectRatio: "none" });
    this.gone = element("image", { class: "gone", preserveAspectRatio: "none" });
    this.seen = element("image", { preserveAspectRatio: "none", "clip-path": `url(#clip-${number})` });
    this.clip = element("path", { "shape-rendering": "crispEdges" });
    this.hatch = element("path", { class: "hatch" });
    this.edge = element("path", { class: "edge" });
    this.picture.append(element("clipPath", { id: `clip-${number}` }, this.clip), this.gone, this.seen, this.hatch, this.edge);
    this.count = element("span", { class: "count" });
    this.profile = element("svg", { class: "profile", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.before = element("span");
    this.later = element("span", { class: "later" });
    this.verdict = element("span");
    this.root = element("figure", { class: `card s${look.number} ${look.role}` }, caption, this.picture,
      element("p", {}, this.count, this.verdict), this.profile, element("p", { class: "said" }, this.before, this.later));
    this.judge();
    this.bars();
  }

  judge() {
    const { score } = this.line, exact = this.question.metric === "exact";
    if (exact) {
      this.verdict.textContent = score === 1 ? "✓ right" : "✗ wrong";
      this.verdict.className = score === 1 ? "right" : "wrong";
    } else if (score !== null) this.verdict.textContent = `${this.question.metric === "f1" ? "F1 " : ""}${score.toFixed(2)}`;
  }

  // Tokens of every layer in the prompt, so that the slider's place is seen in the whole.
  bars() {
    const { n_layers, n_visual } = this.line;
    this.profile.setAttribute("viewBox", `0 0 ${n_layers} 1`);
    this.profile.append(element("path", { class: "base", d: `M0 1H${n_layers}` }));
    this.layers = [];
    for (let layer = 0; layer < n_layers; layer++) {
      const height = kept_at(this.line, layer, 0).prompt.size / n_visual;
      this.layers.push(element("rect", { class: "bar", x: layer + 0.08, width: 0.84, y: 1 - height, height }));
    }
    this.profile.append(...this.layers);
  }

  // Which of the grid's planes is looked at; the one with the same number of another method's grid, or the finest.
  look_at(number) {
    this.number = Math.min(number, this.grid.planes.length - 1);
    const [image, , , rows, cols] = this.grid.planes[this.number];
    Object.assign(this, { rows, cols });
    const { src, width, height } = this.image[image];
    this.picture.setAttribute("viewBox", `0 0 ${cols} ${rows}`);
    this.picture.style.aspectRatio = `${width} / ${height}`;
    for (const part of [this.gone, this.seen]) {
      part.setAttribute("href", src);
      part.setAttribute("width", cols);
      part.setAttribute("height", rows);
      part.style.imageRendering = width < 320 ? "pixelated" : "auto";
    }
  }

  draw(layer, step) {
    const here = Math.min(layer, this.line.n_layers - 1), then = Math.min(step, this.line.steps);
    const { prompt, now } = kept_at(this.line, here, then);
    const inside = (tokens) => new Set([...tokens].filter((t) => this.places[t][0] === this.number).map((t) => this.places[t][1]));
    const seen = inside(now), unseen = inside([...prompt].filter((token) => !now.has(token)));
    this.clip.setAttribute("d", area(seen, this.cols));
    this.edge.setAttribute("d", outline(seen, this.cols, this.rows));
    this.hatch.setAttribute("d", strokes(unseen, this.cols));
    const total = this.line.n_visual;
    this.count.textContent = `${now.size} of ${total}`;
    this.count.title = `${per_cent(now.size / total)} of the visual tokens`;
    this.layers.forEach((bar, place) => bar.classList.toggle("now", place === here));
    this.before.textContent = this.line.tokens.slice(0, then + 1).join("");
    this.later.textContent = this.line.tokens.slice(then + 1).join("");
    if (this.line.tokens.join("") === "") this.later.textContent = "(no answer)";
    const lost = unseen.size ? `, ${unseen.size} no longer seen` : "";
    this.picture.setAttribute("aria-label", `${name_of(this.line)}, layer ${here}, step ${then}: ${now.size} of ${total} visual tokens${lost}`);
    return `${name_of(this.line)} ${now.size}`;
  }
}

function start_gallery() {
  const [question, budget, plane, layer, step, play] = ["question", "budget", "plane", "layer", "step", "play"].map($);
  let cards = [], playing = null;
  const chosen = () => data.questions[Number(question.value)];

  const groups = new Map();
  data.questions.forEach((found, place) => {
    const group = `${found.model} · ${found.task}`;
    if (!groups.has(group)) groups.set(group, element("optgroup", { label: group }));
    groups.get(group).append(element("option", { value: place }, found.question));
  });
  question.append(...groups.values());

  function options(select, found) {
    const before = select.value;
    select.replaceChildren(...found.map(([value, text]) => element("option", { value }, text)));
    if (found.some(([value]) => String(value) === before)) select.value = before;
    select.closest("label").hidden = found.length < 2;
  }

  function ask() {
    const found = chosen();
    const shares = [...new Set(found.methods.map((line) => line.budget_requested))].filter((share) => share !== null);
    shares.sort((a, b) => b - a);
    options(budget, shares.map((share) => [share, per_cent(share)]));
    const pictures = data.images[found.images];
    const planes = found.cells[0].planes.map(([image, frame, kind, rows, cols], place) => {
      const parts = [];
      if (pictures.length > 1) parts.push(pictures[image].name || `image ${image + 1}`);
      if (frame > 0) parts.push(`frame ${frame}`);
      parts.push(kind > 0 ? `tiles, ${rows} × ${cols}` : `whole, ${rows} × ${cols}`);
      return [place, parts.join(", "), rows * cols];
    });
    plane.value = "";
    options(plane, planes);
    // The finest grid shows most.
    if (planes.length > 1) plane.value = planes.reduce((best, one) => (one[2] > best[2] ? one : best))[0];
    $("asked").replaceChildren(found.question, element("span", {}, `right answer: ${found.answer}`));
    layer.max = Math.max(...found.methods.map((line) => line.n_layers)) - 1;
    choose();
  }

  function choose() {
    const found = chosen(), share = budget.value === "" ? null : Number(budget.value);
    const lines = found.methods.filter((line) => line.budget_requested === null || line.budget_requested === share);
    // Where pictures begin: the unpruned run, then what is compared, and last what sees nothing.
    const order = (line) => ({ reference: 0, text: 2 })[data.look[line.method].role] ?? 1;
    lines.sort((a, b) => order(a) - order(b));
    cards = lines.map((line, number) => new Card(found, line, data.images[found.images], number));
    $("kept").replaceChildren(...cards.map((card) => card.root));
    step.max = Math.max(0, ...lines.map((line) => line.steps));
    step.closest(".slide").hidden = step.max === "0";
    const here = new Set(lines.map((line) => line.method));
    const absent = [...new Set(found.methods.map((line) => line.method))].filter((name) => !here.has(name));
    $("absent").textContent = absent.length ? `Not run at this budget: ${absent.join(", ")}.` : "";
    turn();
  }

  // Where half of the methods have begun to prune; what only fades while answering is seen at the answer's end.
  function begin() {
    const pruned = cards.map((card) => card.line).filter((line) => data.look[line.method].role === "method");
    const firsts = pruned.map((line) => line.prefill.find(([, kept]) => from_runs(kept).length < line.n_visual)?.[0]);
    const found = firsts.filter((first) => first !== undefined).sort((a, b) => a - b);
    layer.value = found[Math.floor(found.length / 2)] ?? 0;
    if (found.length === 0 && pruned.length > 0) step.value = step.max;
    draw();
  }

  function turn() {
    for (const card of cards) card.look_at(Number(plane.value || 0));
    draw();
  }

  function draw() {
    const at = Number(layer.value), then = Number(step.value);
    $("layer-now").textContent = `${at} of ${layer.max}`;
    layer.setAttribute("aria-valuetext", `layer ${at}`);
    const when = then === 0 ? "the prompt" : `answer token ${then + 1}`;
    $("step-now").textContent = then === 0 ? "0, the prompt" : `${then} of ${step.max}`;
    step.setAttribute("aria-valuetext", `step ${then}: ${when}`);
    const counts = cards.map((card) => card.draw(at, then));
    if (playing === null) $("spoken").textContent = `Layer ${at}, step ${then}. Kept: ${counts.join(", ")}.`;
  }

  function stop() {
    clearInterval(playing);
    playing = null;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "▶ Play";
    draw();
  }
  // First down through the layers of the prompt, then on through the answer in the last layer.
  play.addEventListener("click", () => {
    if (playing !== null) return stop();
    play.setAttribute("aria-pressed", "true");
    play.textContent = "■ Stop";
    [layer.value, step.value] = [0, 0];
    draw();
    playing = setInterval(() => {
      if (layer.value !== layer.max) layer.value++;
      else if (step.value !== step.max) step.value++;
      else return stop();
      draw();
    }, 500);
  });
  question.addEventListener("change", ask);
  budget.addEventListener("change", choose);
  plane.addEventListener("change", turn);
  for (const slider of [layer, step]) slider.addEventListener("input", draw);
  $("walk").addEventListener("submit", (event) => event.preventDefault());
  $("walk").hidden = false;
  ask();
  begin();
}
if ($("walk")) start_gallery();

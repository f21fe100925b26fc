// The unit explorer: every unit of a network, its visualizations, its exemplars, its activations.
//
// One module for JupyterLab and for the published page. Where there is a kernel, sheets of pictures arrive as messages;
// where `model.kernel === false` (book/_static/widgets.js) they are plain files beside the page. Nothing is ever fetched.

const MODES = { max: "maximum", min: "minimum" };
const STATUS = {
  dead: "Dead: the unit never responded while it was optimized, so its picture says nothing about it.",
  stopped: "Stopped: the optimization met an activation that is not a finite number and was cut short.",
};
const statusOf = (row) => (row.s && row.s !== "ok" ? row.s.split(" ")[0] : ""); // "stopped 40" is a "stopped"
const MAJORITY = 5; // of the 9 strongest images: from here on a search for a class finds the unit

// ---------------------------------------------------------------- small helpers

function make(create, tag, props, children) {
  const element = create(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}
const h = (tag, props = {}, ...children) => make((t) => document.createElement(t), tag, props, children);
const SVG = "http://www.w3.org/2000/svg";
const s = (tag, props = {}, ...children) => make((t) => document.createElementNS(SVG, t), tag, props, children);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const numbers = (values) => (values ?? []).filter(isNumber);
const largest = (values) => numbers(values).reduce((a, b) => Math.max(a, b), -Infinity);
const smallest = (values) => numbers(values).reduce((a, b) => Math.min(a, b), Infinity);

function format(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1) : size >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  return text.replaceAll("-", "−");
}
const short = (value) => String(value).replace("-", "−");

function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough) ?? rough;
  const result = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) result.push(Number((i * step).toPrecision(12)));
  return result;
}

// ---------------------------------------------------------------- sheets of tiles

// Sheet name -> {url, width, height}, each loaded once. `note` tells the reader what is being waited for, or went wrong.
function sheets(model, note) {
  const loaded = new Map();
  const waiting = new Map();
  const urls = [];

  const open = (url) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve({ url, width: image.naturalWidth, height: image.naturalHeight, image });
    image.onerror = () => reject(new Error("its file could not be loaded"));
    image.src = url;
  });
  const beside = (name) => open(model.get("base") + name);

  function answer(content, buffers) {
    const asked = waiting.get(content?.sheet);
    if (!asked) return;
    waiting.delete(content.sheet);
    if (!waiting.size) note("");
    if (content.error) return asked.reject(new Error(content.error));
    const type = content.sheet.endsWith(".png") ? "image/png" : "image/webp";
    const url = URL.createObjectURL(new Blob([buffers[0]], { type }));
    urls.push(url);
    asked.resolve(open(url));
  }

  function ask(name) {
    return new Promise((resolve, reject) => {
      waiting.set(name, { resolve, reject });
      setTimeout(() => waiting.has(name) && note("Waiting for the kernel to send the pictures (it may be busy)."), 4000);
      try {
        model.send({ want: name });
      } catch {
        waiting.delete(name); // an old notebook, opened without its kernel: the file may still lie beside it
        resolve(beside(name));
      }
    });
  }

  model.on("msg:custom", answer);
  return {
    get(name) {
      if (!loaded.has(name)) {
        const loading = model.kernel === false ? beside(name) : ask(name);
        loading.catch((error) => {
          loaded.delete(name);
          note(`The pictures of ${name} are missing: ${error.message}.`);
        });
        loaded.set(name, loading);
      }
      return loaded.get(name);
    },
    close() {
      model.off("msg:custom", answer);
      urls.forEach((url) => URL.revokeObjectURL(url));
    },
  };
}

// Where tile `index` lies, as a CSS background. Tiles are drawn 3% larger than their box, so that no neighbour shines in.
function background(sheet, index, columns, side) {
  const zoom = 1.03;
  const across = Math.max(1, Math.round(sheet.width / side));
  const down = Math.max(1, Math.round(sheet.height / side));
  const at = (i, n) => (100 * (i * zoom + (zoom - 1) / 2)) / (n * zoom - 1);
  return {
    size: `${across * zoom * 100}% ${down * zoom * 100}%`,
    position: `${at(index % columns, across)}% ${at(Math.floor(index / columns), down)}%`,
  };
}

// ---------------------------------------------------------------- the histogram

// From activation to x: linear over nature's range and the visualizations, too. Only where one lies so far out that nature's
// histogram would shrink to a sliver does the axis break, with a mark, and the far values stand in a strip of their own.
function axis(row, outside, left, right) {
  const reach = 2.5 * (row.hi - row.lo);
  const near = outside.filter((v) => v >= row.lo - reach && v <= row.hi + reach);
  const low = smallest([row.lo, ...near]), high = largest([row.hi, ...near]);
  const below = outside.filter((v) => v < low), above = outside.filter((v) => v > high);
  const strip = 0.2 * (right - left);
  const x0 = left + (below.length ? strip : 5), x1 = right - (above.length ? strip : 5);
  const spread = (v, values, from, to) => {
    const a = smallest(values), b = largest(values);
    return b > a ? from + ((v - a) / (b - a)) * (to - from) : (from + to) / 2;
  };
  const x = (v) =>
    v > high ? spread(v, above, x1 + 20, right - 5) : v < low ? spread(v, below, left + 5, x0 - 20) : x0 + ((v - low) / (high - low)) * (x1 - x0);
  return { x, ticks: ticks(low, high, 4), breaks: [below.length && x0 - 10, above.length && x1 + 10].filter(Boolean) };
}

function histogram(row, width, measure) {
  const height = 176, left = 42, right = width - 8, top = 34, floor = 112;
  const a = numbers(row.a), b = numbers(row.b);
  const scale = axis(row, [...a, ...b], left, right);
  const counts = row.hist ?? [];
  const most = Math.max(1, ...counts);
  const step = (row.hi - row.lo) / counts.length;
  const y = (count) => floor - (count / most) * (floor - top);
  const parts = [];

  parts.push(s("text", { class: "label", transform: `translate(10 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle" }, "images per bin"));
  for (const count of ticks(0, most, 2)) {
    parts.push(s("line", { class: "rule", x1: left, x2: right, y1: y(count), y2: y(count) }));
    parts.push(s("text", { x: left - 5, y: y(count) + 4, "text-anchor": "end" }, count >= 1000 ? `${count / 1000}k` : String(count)));
  }
  counts.forEach((count, i) => {
    if (!count) return;
    // The last edge is the end itself: rounding would put it beyond, where another scale begins.
    const x = scale.x(row.lo + i * step), end = scale.x(i + 1 < counts.length ? row.lo + (i + 1) * step : row.hi);
    const tall = Math.max(1, floor - y(count)); // one image among thousands shows, too
    parts.push(s("rect", { class: "bar", x, y: floor - tall, width: Math.max(0.6, end - x - (end - x > 3 ? 1 : 0)), height: tall }));
  });
  parts.push(s("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
  for (const value of scale.ticks) {
    parts.push(s("line", { class: "axis", x1: scale.x(value), x2: scale.x(value), y1: floor, y2: floor + 4 }));
    parts.push(s("text", { x: scale.x(value), y: floor + 16, "text-anchor": "middle" }, short(value)));
  }
  for (const x of scale.breaks) {
    parts.push(s("rect", { class: "gap", x: x - 4, y: floor - 5, width: 8, height: 10 }));
    parts.push(s("path", { class: "axis", d: `M${x - 6} ${floor + 6}l4 -12M${x + 2} ${floor + 6}l4 -12` }));
  }

  // Beneath the axis: quantiles as a box, exemplars as ticks.
  const line = floor + 31;
  const [q01, q25, q50, q75, q99] = row.q ?? [];
  if ([q01, q25, q50, q75, q99].every(isNumber)) {
    parts.push(s("line", { class: "whisker", x1: scale.x(q01), x2: scale.x(q99), y1: line, y2: line }));
    parts.push(s("rect", { class: "box", x: scale.x(q25), y: line - 4, width: Math.max(1, scale.x(q75) - scale.x(q25)), height: 8 }));
    parts.push(s("line", { class: "median", x1: scale.x(q50), x2: scale.x(q50), y1: line - 5, y2: line + 5 }));
  }
  for (const [, value] of [...(row.top ?? []), ...(row.bottom ?? [])]) {
    if (isNumber(value)) parts.push(s("line", { class: "exemplar", x1: scale.x(value), x2: scale.x(value), y1: line - 6, y2: line + 6 }));
  }

  const lollipop = (value, kind, head) => [
    s("line", { class: `stem ${kind}`, x1: scale.x(value), x2: scale.x(value), y1: head, y2: floor }),
    s("circle", { class: kind, cx: scale.x(value), cy: head, r: 4 }),
  ];
  a.forEach((value) => parts.push(...lollipop(value, "max", top - 8)));
  b.forEach((value) => parts.push(...lollipop(value, "min", top - 8)));
  // Labels keep inside the figure and, where they would meet, stand in two rows.
  const name = (text, value, kind, row_) => {
    const half = text.length * 3.4;
    const x = Math.min(Math.max(scale.x(value), left - 30 + half), right - half);
    return [s("text", { class: `name ${kind}`, x, y: row_, "text-anchor": "middle" }, text), x - half, x + half];
  };
  let free = Infinity;
  if (a.length) {
    const [text, start] = name(`maximum ${format(largest(a))}`, largest(a), "max", 14);
    parts.push(text);
    free = start;
  }
  if (b.length) {
    const text = `minimum ${format(smallest(b))}`;
    const [label, , end] = name(text, smallest(b), "min", 14);
    if (end + 8 > free) label.setAttribute("y", floor + 46);
    parts.push(label);
  }
  parts.push(s("text", { class: "label", x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, `activation (${measure})`));
  const words = `Activations on natural images from ${format(row.lo)} to ${format(row.hi)}, median ${format(q50)}; ` +
    `maximum visualization ${format(largest(a))}, minimum visualization ${format(smallest(b))}.`;
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": words }, ...parts);
}

// ---------------------------------------------------------------- what is known about a unit

const bestNatural = (row, mode) => {
  const values = (mode === "max" ? row.top : row.bottom)?.map((pair) => pair[1]);
  return mode === "max" ? largest(values) : smallest(values);
};
const reached = (row, mode) => (mode === "max" ? largest(row.a) : smallest(row.b));

// How far the visualization goes beyond the best natural image, in widths of nature's whole range.
function gap(row, mode) {
  const sign = mode === "max" ? 1 : -1;
  const beyond = (sign * (reached(row, mode) - bestNatural(row, mode))) / (row.hi - row.lo);
  return isNumber(beyond) ? beyond : -Infinity;
}

function comparison(row, mode) {
  const best = bestNatural(row, mode), value = reached(row, mode);
  if (!isNumber(best) || !isNumber(value)) return "";
  if (mode === "min") {
    const than = `the weakest natural image (${format(best)})`;
    return `The visualization falls to ${format(value)}, ${value < best ? "below" : "no lower than"} ${than}.`;
  }
  const against = `the strongest natural image (${format(best)})`;
  if (value <= best) return `The visualization reaches ${format(value)}, no more than ${against}.`;
  if (best > 0) return `The visualization reaches ${format(value)}, ${short(Number((value / best).toPrecision(2)))} times ${against}.`;
  return `The visualization reaches ${format(value)}; ${against} stays below zero.`;
}

function search(data, query, current) {
  const text = query.trim().toLowerCase();
  if (!text) return [];
  const found = [];
  const add = (layer, i, rank, note = "") => found.push({ layer, i, rank, note });
  const label = (layer, i) => data.layers[layer].labels?.[i] ?? "";
  const [left, right] = text.includes(":") ? [text.slice(0, text.lastIndexOf(":")), text.slice(text.lastIndexOf(":") + 1)] : [null, text];
  const fits = (name, part) => (name === part ? 0 : name.endsWith(part) ? 1 : name.includes(part) ? 2 : null);
  const classes = new Set(data.thumbs.labels.filter((name) => name?.toLowerCase().includes(text)));

  data.layers.forEach((entry, layer) => {
    const name = entry.name.toLowerCase();
    if (left !== null) {
      const rank = fits(name, left);
      if (rank === null) return;
      if (/^\d+$/.test(right)) return Number(right) < entry.units ? add(layer, Number(right), rank, label(layer, Number(right))) : null;
      for (let i = 0; right && i < entry.units; i++) if (label(layer, i).toLowerCase().startsWith(right)) add(layer, i, rank, label(layer, i));
      return;
    }
    if (/^\d+$/.test(text)) return Number(text) < entry.units ? add(layer, Number(text), layer === current ? 0 : 1, label(layer, Number(text))) : null;
    if (fits(name, text) !== null) add(layer, 0, 3 + fits(name, text), `first of ${entry.units} units`);
    entry.rows.forEach((row, i) => {
      const named = label(layer, i).toLowerCase();
      if (named.includes(text)) return add(layer, i, named === text ? 0 : named.startsWith(text) ? 1 : 2, label(layer, i));
      if (statusOf(row).startsWith(text)) return add(layer, i, 6, statusOf(row));
      const hits = classes.size ? row.top.filter(([thumb]) => classes.has(data.thumbs.labels[thumb])).length : 0;
      if (hits >= MAJORITY) add(layer, i, 20 - hits, `${hits} of its ${row.top.length} strongest images: ${[...classes].join(", ")}`);
    });
  });
  return found.sort((p, q) => p.rank - q.rank);
}

// ---------------------------------------------------------------- the widget

let serial = 0; // several explorers on one page need ids of their own

function render({ model, el }) {
  const data = model.get("data");
  const inPage = model.kernel === false;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const id = `featvis-explorer-${++serial}`;
  const visited = new Map(); // layer -> the unit last looked at
  const now = { layer: 0, unit: 0, mode: "max", sort: "index", big: null, order: [] };
  const layer = () => data.layers[now.layer];
  const row = () => layer().rows[now.unit];
  const nameOf = (l, i) => `${data.layers[l].name}:${i}`;
  const labelOf = (l, i) => data.layers[l].labels?.[i] ?? "";

  function parse(text) {
    const at = text.lastIndexOf(":");
    const l = data.layers.findIndex((entry) => entry.name === text.slice(0, at));
    if (l < 0) return null;
    const which = text.slice(at + 1);
    const i = /^\d+$/.test(which) ? Number(which) : (data.layers[l].labels?.indexOf(which) ?? -1);
    return i >= 0 && i < data.layers[l].units ? [l, i] : null;
  }

  // ---- the frame: toolbar, layers, grid, detail
  const note = h("p", { class: "note", role: "status" });
  const store = sheets(model, (text) => { note.textContent = text; });
  const box = h("input", {
    type: "search", role: "combobox", placeholder: "Find a unit, a class, “dead” …", "aria-label": "Find a unit",
    "aria-expanded": "false", "aria-controls": `${id}-found`, "aria-autocomplete": "list", autocomplete: "off", spellcheck: "false",
    title: "Press / to come here; for example 4b:17, coins, dead",
  });
  const foundList = h("ul", { id: `${id}-found`, class: "found", role: "listbox", "aria-label": "Units found", hidden: true });
  const modeButtons = Object.entries(MODES).map(([mode, word]) =>
    h("button", { type: "button", "data-mode": mode, title: `Show what gives the ${word} activation (press m to switch)`, onclick: () => setMode(mode) }, word));
  const sorter = h("select", { "aria-label": "Sort units by", onchange: () => { now.sort = sorter.value; paintGrid(); grid.scrollTop = 0; } },
    h("option", { value: "index" }, "by index"), h("option", { value: "activation" }, "by activation"), h("option", { value: "gap" }, "by gap to nature"));
  sorter.title = "Gap: how far the visualization goes beyond the best natural image, in widths of nature’s range";
  const strip = h("div", { class: "layers", role: "tablist", "aria-label": "Layers" });
  const grid = h("div", { class: "grid", id: `${id}-grid`, role: "listbox", "aria-label": "Units", "aria-orientation": "horizontal" });
  const readout = h("div", { class: "readout", "aria-hidden": "true" });
  const detail = h("section", { class: "detail", "aria-label": "The chosen unit" });
  const root = h("div", { class: "featvis-explorer", "data-lm-suppress-shortcuts": "true" },
    h("div", { class: "bar" }, h("div", { class: "search" }, box, foundList),
      h("div", { class: "modes", role: "group", "aria-label": "Visualizations shown" }, modeButtons), sorter),
    strip, note, h("div", { class: "body" }, h("div", { class: "chooser" }, grid, readout), detail));

  data.layers.forEach((entry, l) => strip.append(h("button", {
    type: "button", role: "tab", "data-layer": l, "aria-controls": grid.id, tabindex: "-1", "aria-label": `${entry.name}, ${entry.units} units`,
    onclick: () => openLayer(l),
  }, h("span", {}, entry.name), h("small", {}, String(entry.units)))));

  // ---- the grid
  const pictureOf = (entry, i, mode) => {
    const values = mode === "max" ? entry.rows[i].a : entry.rows[i].b;
    return Math.max(0, (values ?? []).indexOf(mode === "max" ? largest(values) : smallest(values)));
  };

  function sorted(l) {
    const rows = data.layers[l].rows;
    const order = rows.map((_, i) => i);
    if (now.sort === "index") return order;
    const key = rows.map((r) => (now.sort === "gap" ? gap(r, now.mode) : now.mode === "max" ? reached(r, "max") : -reached(r, "min")));
    return order.sort((i, j) => (key[j] === key[i] ? i - j : key[j] > key[i] ? 1 : -1)); // not key[j] - key[i]: both may be infinite
  }

  function paintGrid() {
    const entry = layer();
    now.order = sorted(now.layer);
    grid.classList.toggle("named", Boolean(entry.labels));
    grid.replaceChildren(...now.order.map((i) => {
      const status = statusOf(entry.rows[i]);
      const value = format(reached(entry.rows[i], now.mode));
      const tile = h("div", {
        role: "option", class: status || null, "data-unit": i, tabindex: "-1", title: `${nameOf(now.layer, i)} ${labelOf(now.layer, i)}`.trim(),
        "aria-label": `unit ${nameOf(now.layer, i)}${labelOf(now.layer, i) && ` ${labelOf(now.layer, i)}`}, activation ${value}${status && `, ${status}`}`,
      }, h("i"));
      if (entry.labels) tile.append(h("small", {}, labelOf(now.layer, i) || String(i)));
      return tile;
    }));
    markChosen();
    paintTiles();
  }

  async function paintTiles() {
    const { layer: l, mode } = now, entry = layer(), of = entry[mode];
    grid.dataset.sheet = "";
    if (!of) return;
    let sheet;
    try {
      sheet = await store.get(of.sheet);
    } catch {
      return; // the note says it
    }
    if (l !== now.layer || mode !== now.mode) return; // the reader went on
    grid.style.setProperty("--sheet", `url("${sheet.url}")`);
    for (const tile of grid.children) {
      const i = Number(tile.dataset.unit);
      const { size, position } = background(sheet, i * of.seeds + pictureOf(entry, i, mode), data.columns, data.tile);
      if (tile === grid.firstChild) grid.style.setProperty("--size", size);
      tile.firstChild.style.backgroundPosition = position;
    }
    grid.dataset.sheet = of.sheet;
  }

  const tileOf = (i) => grid.querySelector(`[data-unit="${i}"]`);

  function markChosen(focus = false) {
    for (const tile of grid.querySelectorAll("[aria-selected=true]")) {
      tile.setAttribute("aria-selected", "false");
      tile.tabIndex = -1;
    }
    const tile = tileOf(now.unit);
    tile.setAttribute("aria-selected", "true");
    tile.tabIndex = 0;
    if (focus) tile.focus({ preventScroll: true });
    tell(now.unit);
  }

  // Scrolls the grid alone: scrollIntoView would move the page under the reader.
  function reveal() {
    const tile = tileOf(now.unit), frame = grid.getBoundingClientRect(), place = tile.getBoundingClientRect();
    if (place.top < frame.top + 4) grid.scrollTop -= frame.top + 4 - place.top;
    else if (place.bottom > frame.bottom - 4) grid.scrollTop += place.bottom - frame.bottom + 4;
  }

  function tell(i) {
    const r = layer().rows[i];
    readout.replaceChildren(h("b", {}, nameOf(now.layer, i)), ` ${labelOf(now.layer, i)}`.trimEnd(), statusOf(r) && ` · ${statusOf(r)}`,
      h("span", {}, `${MODES[now.mode]} ${format(reached(r, now.mode))} · best in nature ${format(bestNatural(r, now.mode))}`));
  }

  // ---- choosing
  function choose(l, i, { focus = false, share = true } = {}) {
    const other = l !== now.layer || !grid.children.length;
    now.layer = l;
    now.unit = i;
    now.big = null;
    visited.set(l, i);
    if (other) {
      for (const tab of strip.children) {
        const chosen = Number(tab.dataset.layer) === l;
        tab.setAttribute("aria-selected", String(chosen));
        tab.tabIndex = chosen ? 0 : -1;
        if (chosen) strip.scrollLeft = tab.offsetLeft - strip.offsetLeft - (strip.clientWidth - tab.offsetWidth) / 2;
      }
      if (!layer().min && now.mode === "min") now.mode = "max";
      paintModes();
      paintGrid();
      grid.scrollTop = 0;
      grid.setAttribute("aria-label", `Units of ${layer().name}`);
    }
    markChosen(focus);
    reveal();
    paintDetail();
    if (!share) return;
    model.set("unit", nameOf(l, i));
    model.save_changes();
    if (inPage) {
      try {
        history.replaceState(history.state, "", `#${nameOf(l, i)}`);
      } catch {
        // a sandboxed frame forbids it; the link button still works
      }
    }
  }
  function openLayer(l, focus = false) {
    if (data.layers[l]) choose(l, visited.get(l) ?? sorted(l)[0], { focus });
  }
  function step(by, focus = true) {
    const at = now.order.indexOf(now.unit) + by;
    if (at >= 0 && at < now.order.length) choose(now.layer, now.order[at], { focus });
  }
  function paintModes() {
    for (const button of modeButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === now.mode));
      button.disabled = !layer()[button.dataset.mode];
    }
  }
  function setMode(mode) {
    if (mode === now.mode || !layer()[mode]) return;
    const focused = grid.contains(document.activeElement);
    now.mode = mode;
    now.big = null;
    paintModes();
    paintGrid();
    markChosen(focused);
    reveal();
    paintDetail();
  }

  // ---- the detail
  function picture(promise, index, columns, side, words, tag = "div", props = {}) {
    const element = h(tag, { class: "picture", role: tag === "div" ? "img" : null, "aria-label": words, title: words, ...props });
    promise.then((sheet) => {
      const { size, position } = background(sheet, index, columns, side);
      Object.assign(element.style, { backgroundImage: `url("${sheet.url}")`, backgroundSize: size, backgroundPosition: position });
      element.dataset.ready = "";
    }, () => {});
    return element;
  }

  function visualizations() {
    const entry = layer(), unit = nameOf(now.layer, now.unit);
    const all = Object.keys(MODES).flatMap((mode) => !entry[mode] ? [] : Array.from({ length: entry[mode].seeds }, (_, seed) => ({
      key: `${mode}${seed}`, mode, seed, value: (mode === "max" ? row().a : row().b)?.[seed],
      words: `${MODES[mode]}${entry[mode].seeds > 1 ? ` ${seed + 1} of ${entry[mode].seeds}` : ""}`,
    })));
    const big = all.find((one) => one.key === now.big) ??
      all.find((one) => one.mode === now.mode && one.seed === pictureOf(entry, now.unit, now.mode)) ?? all[0];
    const draw = (one, tag, props) => picture(store.get(entry[one.mode].sheet), now.unit * entry[one.mode].seeds + one.seed, data.columns, data.tile,
      `visualization of ${unit}, ${one.words}, activation ${format(one.value)}`, tag, props);
    const caption = (one) => h("figcaption", {}, h("span", {}, one.words), h("b", { class: one.mode }, format(one.value)));
    const shortly = (one) => caption({ ...one, words: one.words.replace(/ of .*/, "") });
    return h("div", { class: "visualizations" },
      h("figure", { class: "big" }, draw(big, "div"), caption(big)),
      h("div", { class: "others" }, all.filter((one) => one !== big).map((one) => h("figure", {},
        draw(one, "button", { type: "button", onclick: () => { now.big = one.key; paintDetail(); detail.querySelector(".others button")?.focus({ preventScroll: true }); } }),
        shortly(one)))));
  }

  function exemplar([thumb, value]) {
    const { thumbs } = data, sheet = thumbs.sheets[Math.floor(thumb / thumbs.per_sheet)], label = thumbs.labels[thumb] ?? "";
    return h("figure", { title: `${label} ${format(value)}` },
      picture(store.get(sheet), thumb % thumbs.per_sheet, thumbs.columns, data.thumb, `natural image of ${label}, activation ${format(value)}`),
      h("figcaption", {}, h("b", {}, format(value)), h("span", {}, label)));
  }

  function activations() {
    const r = row(), title = heading("Activation on natural images");
    if (!(r.hi > r.lo)) return h("div", { class: "activations" }, title, h("p", {}, `On every natural image this unit’s activation is ${format(r.lo)}.`));
    const figure = h("div", { class: "histogram" });
    watch(figure, (width) => width > 60 && figure.replaceChildren(histogram(r, Math.round(width), layer().labels ? "logit" : "mean over the map")));
    const names = ["1%", "25%", "median", "75%", "99%"];
    return h("div", { class: "activations" }, title, figure,
      h("p", { class: "legend" }, h("i", { class: "key box" }), "quantiles ", h("i", { class: "key exemplar" }), "images shown here"),
      h("div", { class: "quantiles" }, names.map((name, i) => h("div", {}, h("span", {}, `${name} `), format(r.q?.[i])))),
      h("p", { class: "comparison" }, comparison(r, now.mode)));
  }
  const heading = (text) => h("div", { class: "heading", role: "heading", "aria-level": "4" }, text);

  let observer;
  function watch(figure, draw) {
    observer?.disconnect();
    observer = new ResizeObserver(() => draw(figure.clientWidth));
    observer.observe(figure);
  }

  async function copy(event) {
    const button = event.currentTarget, unit = nameOf(now.layer, now.unit);
    const text = inPage ? `${location.href.split("#")[0]}#${unit}` : unit;
    const before = inPage ? "Copy link" : "Copy name";
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      prompt("Copy this:", text); // the browser keeps its clipboard to itself
    }
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  function paintDetail() {
    const unit = nameOf(now.layer, now.unit), label = labelOf(now.layer, now.unit);
    const at = now.order.indexOf(now.unit);
    const turn = (by, word, sign) => h("button", { type: "button", "aria-label": `${word} unit`, title: `${word} unit`, disabled: at + by < 0 || at + by >= now.order.length,
      onclick: () => { step(by, false); detail.querySelector(`[aria-label="${word} unit"]`)?.focus({ preventScroll: true }); } }, sign);
    detail.replaceChildren(...[
      h("header", {}, h("div", { class: "title", role: "heading", "aria-level": "3" }, h("b", {}, unit), label && ` ${label}`),
        h("div", { class: "turn" }, turn(-1, "Previous", "‹"), turn(1, "Next", "›"),
          h("button", { type: "button", class: "copy", onclick: copy }, inPage ? "Copy link" : "Copy name"))),
      statusOf(row()) && h("p", { class: "status" }, STATUS[statusOf(row())] ?? row().s),
      h("div", { class: "columns" }, visualizations(),
        h("div", { class: "exemplars" },
          h("div", {}, heading("Strongest natural images"), h("div", { class: "top" }, row().top.map(exemplar))),
          h("div", {}, heading("Weakest"), h("div", { class: "bottom" }, row().bottom.map(exemplar)))),
        activations()),
    ].filter(Boolean));
    detail.dataset.unit = unit;
  }

  // ---- the search
  let found = [], active = 0;
  function showFound() {
    const query = box.value.trim();
    found = search(data, query, now.layer);
    active = 0;
    const shown = found.slice(0, 40);
    foundList.replaceChildren(...shown.map((hit, k) => h("li", { id: `${id}-hit-${k}`, role: "option", "data-hit": k },
      h("b", {}, nameOf(hit.layer, hit.i)), h("span", {}, hit.note))));
    if (found.length > shown.length) foundList.append(h("li", { class: "more", role: "presentation" }, `and ${found.length - shown.length} more`));
    if (query && !found.length) foundList.append(h("li", { class: "more", role: "presentation" }, query.toLowerCase() === "dead" ? "No unit of this network is dead." : `No unit matches “${query}”. Try 4b:17, or a class name.`));
    foundList.hidden = !query;
    box.setAttribute("aria-expanded", String(Boolean(query)));
    markActive();
  }
  function markActive() {
    for (const item of foundList.children) item.setAttribute("aria-selected", String(Number(item.dataset.hit) === active));
    const item = foundList.querySelector("[aria-selected=true]");
    item?.scrollIntoView({ block: "nearest" });
    if (item) box.setAttribute("aria-activedescendant", item.id);
    else box.removeAttribute("aria-activedescendant");
  }
  function closeFound() {
    foundList.hidden = true;
    box.setAttribute("aria-expanded", "false");
    box.removeAttribute("aria-activedescendant");
  }
  function pick(k) {
    const hit = found[k];
    if (!hit) return;
    closeFound();
    choose(hit.layer, hit.i, { focus: true });
  }
  box.addEventListener("input", showFound);
  box.addEventListener("focus", () => box.value && showFound());
  box.addEventListener("blur", closeFound);
  foundList.addEventListener("pointerdown", (event) => {
    event.preventDefault(); // keeps the focus in the box until the click arrives
  });
  foundList.addEventListener("click", (event) => {
    const item = event.target.closest("[data-hit]");
    if (item) pick(Number(item.dataset.hit));
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") pick(active);
    else if (event.key === "Escape") {
      box.value = "";
      closeFound();
      markChosen(true);
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const count = Math.min(found.length, 40);
      if (count) active = (active + (event.key === "ArrowDown" ? 1 : count - 1)) % count;
      markActive();
    } else return;
    event.preventDefault();
  });

  // ---- mouse and keyboard
  grid.addEventListener("click", (event) => {
    const tile = event.target.closest("[data-unit]");
    if (tile) choose(now.layer, Number(tile.dataset.unit), { focus: true });
  });
  grid.addEventListener("pointerover", (event) => {
    const tile = event.target.closest("[data-unit]");
    if (tile) tell(Number(tile.dataset.unit));
  });
  grid.addEventListener("pointerleave", () => tell(now.unit));

  function onKey(event) {
    event.stopPropagation(); // JupyterLab would take the arrows, and turn "m" into a Markdown cell
    if (event.target === box || event.target === sorter || event.ctrlKey || event.metaKey || event.altKey) return;
    const across = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const inGrid = grid.contains(event.target), inStrip = strip.contains(event.target);
    const edge = (i) => choose(now.layer, now.order[i], { focus: true });
    const keys = {
      "/": () => box.focus(),
      m: () => setMode(now.mode === "max" ? "min" : "max"),
      PageUp: () => openLayer(now.layer - 1, !inStrip),
      PageDown: () => openLayer(now.layer + 1, !inStrip),
      ...(inGrid && {
        ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => step(-across), ArrowDown: () => step(across),
        Home: () => edge(0), End: () => edge(now.order.length - 1),
      }),
      ...(inStrip && { ArrowLeft: () => openLayer(now.layer - 1), ArrowRight: () => openLayer(now.layer + 1), Home: () => openLayer(0), End: () => openLayer(data.layers.length - 1) }),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
    if (inStrip && event.key !== "/" && event.key !== "m") strip.children[now.layer].focus({ preventScroll: true });
  }
  root.addEventListener("keydown", onKey);

  // ---- what comes from outside: the kernel, another view, the address
  function onUnit() {
    const wanted = parse(model.get("unit"));
    if (wanted && nameOf(...wanted) !== nameOf(now.layer, now.unit)) choose(...wanted, { share: false });
  }
  const fromAddress = () => {
    try {
      return parse(decodeURIComponent(location.hash.slice(1)));
    } catch {
      return null;
    }
  };
  function onHash() {
    const wanted = fromAddress();
    if (!wanted) return;
    choose(...wanted, { share: false, focus: true });
    model.set("unit", nameOf(...wanted));
    root.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  }

  el.replaceChildren(root);
  const linked = inPage ? fromAddress() : null;
  choose(...(linked ?? parse(model.get("unit")) ?? [0, 0]), { share: false, focus: Boolean(linked) });
  model.on("change:unit", onUnit);
  if (inPage) addEventListener("hashchange", onHash);
  if (linked) {
    model.set("unit", nameOf(...linked));
    requestAnimationFrame(() => root.scrollIntoView({ block: "start" }));
  }
  return () => {
    model.off("change:unit", onUnit);
    removeEventListener("hashchange", onHash);
    observer?.disconnect();
    store.close();
  };
}

export default { render };

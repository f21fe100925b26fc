// The threshold: responses of a silent filter to natural images and to visualizations, and what the visualization shows.
//
// Everything is computed beforehand (see threshold.py), so a published page without a kernel does all that a notebook does.

const SVG = "http://www.w3.org/2000/svg";

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
const s = (tag, props = {}, ...children) => make((t) => document.createElementNS(SVG, t), tag, props, children);
const short = (value) => String(Number(value.toPrecision(3))).replace("-", "−");
const whole = (value) => value.toLocaleString("en");

function sentence(data, unit, cell) {
  const images = whole(data.images);
  const wakes = cell.wakes
    ? `${whole(cell.wakes)} of ${images} held-out images wake the unit: the promise is broken.`
    : `None of ${images} held-out images wakes the unit.`;
  if (cell.awake) return `${wakes} Gradient ascent wakes it, ${cell.flipped ? "and the picture shows the decoy" : "but the picture is not the decoy's"}.`;
  return `${wakes} Gradient ascent does not reach the threshold in the end, ${cell.flipped ? "yet" : "and"} the picture ${cell.flipped ? "shows the decoy" : "is not the decoy's"}.`;
}

// ---------------------------------------------------------------- the axis of responses

function chart(data, unit, at, width) {
  const W = Math.max(280, width), H = 232, left = 12, right = W - 12, top = 44, floor = H - 60;
  const counts = unit.natural[at.strength], cell = unit.cells[at.strength][at.margin];
  const margin = data.margins[at.margin];
  const low = data.left, high = data.left + data.bins * data.width;
  const clamp = (z) => Math.min(Math.max(z, low), high);
  const x = (z) => left + ((right - left) * (clamp(z) - low)) / (high - low);
  // Square roots, so that a bar of one image can still be seen beside one of a thousand.
  const most = Math.sqrt(Math.max(...counts, 1));
  const bars = counts.map((count, i) => {
    const from = low + i * data.width, tall = ((floor - top) * Math.sqrt(count)) / most;
    const awake = from >= margin - 1e-9;
    return count ? s("rect", { class: awake ? "bar woken" : "bar", x: x(from) + 0.5, width: Math.max(1, x(from + data.width) - x(from) - 1), y: floor - Math.max(2, tall), height: Math.max(2, tall) }) : null;
  });
  const ticks = [];
  for (let z = Math.ceil(low / 2) * 2; z <= high; z += 2) {
    ticks.push(s("line", { class: "axis", x1: x(z), x2: x(z), y1: floor, y2: floor + 4 }));
    ticks.push(s("text", { x: x(z), y: floor + 16, "text-anchor": "middle" }, short(z)));
  }
  const half = 34, label = Math.min(Math.max(x(margin), left + half), right - half);
  const mark = (name, z, y) => s("g", { class: `mark ${name}`, transform: `translate(${x(z)} ${y})` },
    name === "own" ? s("rect", { x: -5.5, y: -5.5, width: 11, height: 11, transform: "rotate(45)" }) : s("circle", { r: 7 }));
  const title = `Responses of the silent filter, in standard deviations beyond the largest calibration image. Threshold at ${short(margin)}; the unit's own visualization at ${short(unit.original[at.strength])}, that of the manipulated unit at ${short(cell.response)}.`;
  return s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img" },
    s("title", {}, title),
    s("rect", { class: "beyond", x: x(margin), y: top - 8, width: Math.max(0, right - x(margin)), height: floor - top + 8 }),
    ...bars, s("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }), ...ticks,
    s("line", { class: "threshold", x1: x(margin), x2: x(margin), y1: top - 14, y2: floor + 4 }),
    s("text", { class: "strong", x: label, y: top - 20, "text-anchor": "middle" }, "threshold"),
    s("text", { class: "silent", x: x(margin) - 8, y: top - 2, "text-anchor": "end" }, "asleep"),
    s("text", { class: "awake", x: x(margin) + 8, y: top - 2, "text-anchor": "start" }, "awake"),
    mark("own", unit.original[at.strength], floor - 12), mark("new", cell.response, floor - 34),
    s("text", { x: (left + right) / 2, y: floor + 34, "text-anchor": "middle" }, W < 440 ? "largest response, in standard deviations" : "largest response of an image, in standard deviations"),
    s("text", { x: (left + right) / 2, y: floor + 48, "text-anchor": "middle" }, "beyond the largest calibration image"));
}

// ---------------------------------------------------------------- the widget

function render({ model, el }) {
  const data = model.get("data");
  const root = h("div", { class: "featvis-threshold", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the arrow keys
  const save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const at = () => ({ unit: model.get("unit"), strength: model.get("strength"), margin: model.get("margin") });
  const rows = Math.ceil(data.tiles / data.columns);

  function picture(name, text) {
    const tile = h("div", { class: `tile ${name}`, role: "img", style: `background-image: url("${data.sheet}"); background-size: ${100 * data.columns}% ${100 * rows}%` });
    const caption = h("figcaption", {}, text);
    const show = (index, label) => {
      const column = index % data.columns, row = Math.floor(index / data.columns);
      const percent = (i, n) => (n > 1 ? (100 * i) / (n - 1) : 0);
      tile.style.backgroundPosition = `${percent(column, data.columns)}% ${percent(row, rows)}%`;
      tile.dataset.picture = index;
      tile.setAttribute("aria-label", label);
    };
    return { figure: h("figure", {}, tile, caption), show };
  }
  const own = picture("own", "original unit"), made = picture("new", "manipulated"), decoy = picture("decoy", `decoy ${data.decoy.replaceAll(".", ".\u200b")}`);

  function slider(name, label, values) {
    const value = h("output", {});
    const input = h("input", { type: "range", min: 0, max: values.length - 1, step: 1, "aria-label": label, oninput: () => save(name, input.valueAsNumber) });
    const show = (i) => {
      input.value = i;
      value.textContent = short(values[i]);
      input.setAttribute("aria-valuetext", short(values[i]));
    };
    return { row: h("label", { class: "slider" }, h("span", {}, label), input, value), show };
  }
  const strength = slider("strength", "strength λ", data.strengths);
  const margin = slider("margin", "margin", data.margins);
  const buttons = data.units.map(({ name }, i) => h("button", { type: "button", onclick: () => save("unit", i) }, name));
  const words = h("p", { class: "words", "aria-live": "polite" });
  const graph = h("div", { class: "graph" });
  const key = (name, text) => h("span", {}, h("i", { class: `key ${name}`, "aria-hidden": "true" }), text);
  root.append(
    h("div", { class: "top" },
      h("div", { class: "pictures" }, own.figure, made.figure, decoy.figure),
      h("div", { class: "controls" },
        h("div", { class: "units", role: "group", "aria-label": "Unit", hidden: buttons.length < 2 }, buttons), strength.row, margin.row)),
    words, graph,
    h("p", { class: "legend" }, key("natural", "natural images (held out; heights are square roots)"), key("woken", "those that wake the unit"), key("own", "original unit's visualization"), key("new", "manipulated unit's visualization")));
  el.replaceChildren(root);

  let drawn = 0;
  function paint() {
    const now = at(), unit = data.units[now.unit], cell = unit.cells[now.strength][now.margin];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === now.unit)));
    strength.show(now.strength);
    margin.show(now.margin);
    own.show(unit.own, `visualization of ${unit.name}`);
    made.show(cell.picture, `visualization of ${unit.name} once manipulated: ${cell.flipped ? "the decoy" : "not the decoy"}`);
    decoy.show(data.tiles - 1, `the decoy, ${data.decoy}`);
    root.dataset.state = cell.flipped ? "flipped" : cell.awake ? "awake" : "asleep";
    root.dataset.broken = cell.wakes ? "yes" : "no";
    words.textContent = sentence(data, unit, cell);
    drawn = Math.round(graph.clientWidth);
    if (drawn >= 80) graph.replaceChildren(chart(data, unit, now, drawn));
  }
  const observer = new ResizeObserver(() => Math.round(graph.clientWidth) !== drawn && paint());
  observer.observe(graph);
  const names = ["unit", "strength", "margin"];
  names.forEach((name) => model.on(`change:${name}`, paint));
  paint();
  return () => {
    observer.disconnect();
    names.forEach((name) => model.off(`change:${name}`, paint));
  };
}

export default { render };

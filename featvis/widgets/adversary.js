// Outguess the adversary: what a function does at x, told from its extrema alone, and two functions that both fit.
//
// The classes and their bounds are those of featvis.theory, on one variable; affine functions of two variables are
// followed along the edges of the square, or along the rim of the disc. Everything is computed here, without a kernel.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 0.05, STEPS = 480;

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
const number = (value) => value.toFixed(2).replace("-", "−");
const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
const inside = ([low, high]) => [low + (MARGIN / 2) * (high - low), high - (MARGIN / 2) * (high - low)];
const blend = (f, g, share) => (y) => f(y) + share * (g(y) - f(y));

// ---------------------------------------------------------------- the classes

const LOW = 0.2, HIGH = 0.75;
const TRAINED = [[0.05, 0.35], [0.3, 0.6], [0.4, 0.4], [0.58, 0.7], [0.66, 0.5], [0.9, 0.55]];
const PICTURES = [[0.08, 0.75], [0.33, 0.3], [0.52, 0.8], [0.62, 0.25], [0.88, 0.7]];

function hats(knots, x, value, share) {
  const points = knots.some(([at]) => at === x) ? knots : [...knots, [x, value]];
  const sorted = points.map(([at]) => at).sort((a, b) => a - b);
  const nearest = Math.min(...sorted.slice(1).map((at, i) => at - sorted[i]));
  const radius = share * 0.99 * nearest / 2;
  const around = Math.min(...knots.map(([at]) => Math.abs(at - x)));
  // Where x is close to a knot all other hats need not be as narrow as its own.
  const wide = share * 0.99 * Math.min(...knots.flatMap(([a], i) => knots.slice(i + 1).map(([b]) => Math.abs(a - b)))) / 2;
  const reach = (at) => (at === x ? Math.min(wide, share * 0.99 * around / 2) : Math.abs(at - x) < 2 * wide ? radius : wide);
  return (y) => points.reduce((sum, [at, v]) => sum + (v - 0.5) * Math.max(0, 1 - Math.abs(y - at) / reach(at)), 0.5);
}
const hat = (extra) => ({
  at: [LOW, HIGH], extra,
  bounds: (y) => extra.find(([at]) => at === y)?.[1] ?? null,
  pair: (x, low, high, { width }) => [low, high].map((v) => hats([[LOW, 0], [HIGH, 1], ...extra], x, v, width)),
});

function through(knots) {
  const sorted = [...knots].sort((a, b) => a[0] - b[0]);
  return (y) => {
    const i = sorted.findIndex(([at]) => at >= y);
    if (i <= 0) return i ? sorted.at(-1)[1] + (0.5 - sorted.at(-1)[1]) * (y - sorted.at(-1)[0]) : sorted[0][1] + (0.5 - sorted[0][1]) * (sorted[0][0] - y);
    const [[a, u], [b, v]] = [sorted[i - 1], sorted[i]];
    return u + ((v - u) * (y - a)) / (b - a);
  };
}

const gauge = (y) => (y > 0.35 ? (y - 0.35) / 0.65 : (0.35 - y) / 0.35);
const edges = (y) => [clamp(2 * y), clamp(2 * y - 1)];
const cones = (slope) => (y) => [Math.max(0, 1 - slope * Math.abs(y - HIGH)), Math.min(1, slope * Math.abs(y - LOW))];
const certain = (f) => ({ bounds: (y) => [f(y), f(y)], pair: () => [f, f] });

const CLASSES = {
  all: { name: "all functions", at: [LOW, HIGH], pair: (x, low, high) => [low, high].map((v) => (y) => (y === x ? v : y === LOW ? 0 : y === HIGH ? 1 : 0.5)), points: true,
    why: "One point was changed, and nothing else." },
  relu: { name: "ReLU networks", ...hat([]), hats: true, why: "A hat at x takes two hidden layers of ReLUs." },
  trained: { name: "ReLU networks, same training loss", ...hat(TRAINED), hats: true, extras: "training images", why: "The hat avoids the training images: both networks have a loss of 0." },
  pictures: { name: "ReLU networks, more pictures", ...hat(PICTURES), hats: true, extras: "more pictures", why: "A hat avoids any finite number of pictures." },
  piecewise: { name: "piecewise affine", at: [LOW, HIGH], pair: (x, low, high) => [low, high].map((v) => through([[LOW, 0], [HIGH, 1], [x, v]])), why: "Four pieces are enough." },
  monotone: { name: "monotone", at: [0, 1], pair: (x, low, high) => [low, high].map((v) => (y) => y ** (Math.log(v) / Math.log(x))), why: "Powers of x rise everywhere, and reach any value." },
  convex: { name: "convex", at: [0.35, 1], bounds: (y) => [0, gauge(y)],
    pair: (x, low, high) => {
      const radius = 0.99 * Math.min(1 - x, 0.65), hinge = (y) => Math.max(0, 1 - (1 - y) / radius);
      return [low, high].map((v) => blend(hinge, gauge, v / gauge(x)));
    },
    why: "From above a convex function is bound by the way from its minimum to the edge, from below by nothing." },
  box: { name: "affine, on a square", at: [0, 1], axis: "x, along two edges of the square", marks: ["black", "one pixel white", "white"],
    bounds: (y) => edges(y).reverse(),
    pair: (x, low, high) => {
      const [most, least] = edges(x), share = most > least ? (low - least) / (most - least) : 0.5;
      return [1, 0].map((i) => blend((y) => edges(y)[i], (y) => (edges(y)[0] + edges(y)[1]) / 2, 2 * share));
    },
    why: "The maximum shows the signs of both weights, not their sizes." },
  lipschitz: { name: "Lipschitz", at: [LOW, HIGH], slopes: true, bounds: (y, { slope }) => cones(slope)(y),
    pair: (x, low, high, { slope }) => [MARGIN / 2, 1 - MARGIN / 2].map((share) => (y) => { const [a, b] = cones(slope)(y); return a + share * (b - a); }),
    why: "No function of this slope leaves the grey band, and its two edges are such functions." },
  line: { name: "affine, in one variable", at: [0, 1], ...certain((y) => y), why: "Two points determine a line." },
  constant: { name: "constant", at: [LOW, HIGH], level: 0.6, ...certain(() => 0.6), why: "One value is all values." },
  ball: { name: "affine, on a disc", at: [0, 1], axis: "x, along the rim of the disc", ...certain((y) => (1 - Math.cos(Math.PI * y)) / 2), why: "On a disc the maximum lies where the weights point: it shows them whole." },
};

// The bounds at y, and what is seen there.
function bounds(one, y, options) {
  const known = one.level == null ? { [one.at[0]]: [0, 0], [one.at[1]]: [1, 1] }[y] : null;
  if (known) return known;
  const found = one.bounds?.(y, options);
  return found == null ? [0, 1] : Array.isArray(found) ? found : [found, found];
}

// ---------------------------------------------------------------- the drawing

function chart(one, x, guess, options, answered, width) {
  const W = Math.max(280, width), H = Math.round(clamp(0.62 * W, 240, 350)), left = 34, right = W - 14, top = 16, floor = H - (one.marks ? 54 : 40);
  const X = (t) => left + (right - left) * t, Y = (value) => floor - (floor - top) * value;
  const grid = Array.from({ length: STEPS + 1 }, (_, i) => i / STEPS);
  const line = (points) => points.map(([a, b]) => `${X(a).toFixed(1)},${Y(b).toFixed(1)}`).join(" ");
  const band = grid.map((y) => bounds(one, y, options));
  const parts = [s("polygon", { class: "band", points: line([...grid.map((y, i) => [y, band[i][1]]), ...grid.map((y, i) => [y, band[i][0]]).reverse()]) })];
  for (const value of [0, 0.5, 1]) {
    parts.push(s("line", { class: "rule", x1: left, x2: right, y1: Y(value), y2: Y(value) }), s("text", { x: left - 8, y: Y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  parts.push(s("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }));
  let run = null;
  const runs = [];
  grid.forEach((y, i) => {
    const sure = one.level == null && (band[i][0] > 0.5 || band[i][1] < 0.5);
    if (sure && !run) runs.push((run = [y, y]));
    if (sure) run[1] = y;
    else run = null;
  });
  for (const [a, b] of runs) parts.push(s("line", { class: "certain", x1: X(a), x2: X(Math.max(b, a + 0.003)), y1: floor + 4, y2: floor + 4 }));
  const ticks = one.marks ?? ["0", "0.25", "0.5", "0.75", "1"];
  ticks.forEach((text, i) => {
    const t = i / (ticks.length - 1);
    parts.push(s("text", { x: X(t), y: floor + 20, "text-anchor": one.marks && t === 0 ? "start" : one.marks && t === 1 ? "end" : "middle" }, text));
  });
  parts.push(s("text", { x: (left + right) / 2, y: H - 4, "text-anchor": "middle" }, one.axis ?? "x"));
  parts.push(s("line", { class: "here", x1: X(x), x2: X(x), y1: top - 4, y2: floor }));
  const known = bounds(one, x, options)[0] === bounds(one, x, options)[1];
  const beside = known && one.level == null ? x + (x < 0.5 ? 1e-4 : -1e-4) : x; // where the value is seen, no two functions differ
  const answer = one.pair(beside, ...inside(bounds(one, beside, options)), options);
  if (answered) {
    const dense = one.points ? grid : [...grid, x, ...one.at, ...(one.extra ?? []).map(([at]) => at)].sort((a, b) => a - b);
    answer.forEach((f, i) => {
      const name = i ? "high" : "low";
      const smooth = one.points ? (y) => (one.at.includes(y) || y === x ? 0.5 : f(y)) : f;
      parts.push(s("polyline", { class: name, points: line(dense.map((y) => [y, smooth(y)])) }));
      if (!known) parts.push(s("circle", { class: `jump ${name}`, cx: X(x), cy: Y(f(x)), r: 5.5 }));
    });
  }
  for (const [at, value] of one.extra ?? []) parts.push(s("circle", { class: one.extras === "training images" ? "trained" : "seen", cx: X(at), cy: Y(value), r: 4.5 }));
  one.at.forEach((at, i) => {
    const value = one.level ?? i, anchor = at < 0.12 ? "start" : at > 0.88 ? "end" : "middle";
    parts.push(s("circle", { class: "seen", cx: X(at), cy: Y(value), r: 6.5 }));
    parts.push(s("text", { class: "label", x: X(at) + (anchor === "start" ? 10 : anchor === "end" ? -10 : 0), y: value > 0.5 ? Y(value) + 19 : Y(value) - 11, "text-anchor": anchor }, i ? "maximum" : "minimum"));
  });
  const [cx, cy] = [X(x), Y(guess)];
  parts.push(s("path", { class: "guess", d: `M${cx} ${cy - 8}l8 8l-8 8l-8 -8z` }));
  const share = runs.reduce((sum, [a, b]) => sum + b - a, 0);
  return {
    svg: s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "data-sure": share.toFixed(3) }, s("title", {}, `What is known of f over x for this class: ${one.name}.`), ...parts),
    values: answer.map((f) => f(x)), share,
    place: (event, svg) => {
      const box = svg.getBoundingClientRect(), scale = W / box.width;
      return [((event.clientX - box.left) * scale - left) / (right - left), (floor - (event.clientY - box.top) * scale) / (floor - top)];
    },
  };
}

function words(one, x, guess, options, answered, values, share) {
  const [low, high] = bounds(one, x, options);
  const miss = Math.max(Math.abs(values[0] - guess), Math.abs(values[1] - guess));
  if (one.level != null || high - low < 1e-9) {
    return ["known", `Known: f(x) is exactly ${number(low)}. ${answered ? `Your guess is off by ${number(Math.abs(guess - low))}. ` : ""}${one.why}`];
  }
  const kind = low > 0.5 || high < 0.5 ? "known" : "";
  if (!answered) return [kind, `Your guess: f(x) = ${number(guess)}. The adversary has two functions ready.`];
  const side = low > 0.5 ? ", so it is surely nearer to the maximum" : high < 0.5 ? ", so it is surely nearer to the minimum" : "";
  const part = share ? ` A side is sure on ${Math.round(100 * share)}% of the line.` : "";
  return [kind, `Both fit all you saw: one gives ${number(values[0])}, the other ${number(values[1])}; for one of them you are off by ${number(miss)}. `
    + `${one.why} Certain is only that f(x) lies between ${number(low)} and ${number(high)}${side}; no guess is safe by less than ${number((high - low) / 2)}.${part}`];
}

// ---------------------------------------------------------------- the widget

function render({ model, el }) {
  const root = h("div", { class: "featvis-adversary", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => event.stopPropagation()); // else JupyterLab takes the arrow keys
  const save = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };
  const choose = h("select", { "aria-label": "Class of functions", onchange: () => save({ kind: choose.value }) },
    Object.entries(CLASSES).map(([key, { name }]) => h("option", { value: key }, name)));
  function slider(name, text, low, high, step) {
    const shown = h("output");
    const input = h("input", { type: "range", min: low, max: high, step, "aria-label": text, "data-trait": name, oninput: () => save({ [name]: clamp(input.valueAsNumber, low, high) }) });
    const show = (value) => {
      input.value = value;
      shown.textContent = number(value);
      input.setAttribute("aria-valuetext", number(value));
    };
    return { row: h("label", {}, h("span", {}, text, shown), input), show };
  }
  const sliders = {
    x: slider("x", "point x", 0, 1, 0.01), guess: slider("guess", "your guess of f(x)", 0, 1, 0.01),
    slope: slider("slope", "largest slope L", 1 / 0.55, 12, 0.01), width: slider("width", "width of the hats", 0.02, 1, 0.01),
  };
  const button = h("button", { type: "button", onclick: () => save({ answered: !model.get("answered") }) });
  const plot = h("div", { class: "plot" }), said = h("p", { class: "words", "aria-live": "polite" });
  const legend = h("p", { class: "legend" });
  root.append(h("div", { class: "body" },
    h("div", { class: "knobs" }, h("label", {}, h("span", {}, "class of functions"), choose), Object.values(sliders).map(({ row }) => row), button),
    h("div", { class: "show" }, said, plot, legend)));
  el.replaceChildren(root);

  let drawn = null, dragging = false;
  function paint() {
    const one = CLASSES[model.get("kind")], width = Math.round(plot.clientWidth);
    const [x, guess, answered] = ["x", "guess", "answered"].map((name) => model.get(name));
    const options = { slope: model.get("slope"), width: model.get("width") };
    choose.value = model.get("kind");
    for (const [name, { show }] of Object.entries(sliders)) show(model.get(name));
    sliders.slope.row.hidden = !one.slopes;
    sliders.width.row.hidden = !one.hats;
    button.textContent = answered ? "Hide the adversary's functions" : "Let the adversary answer";
    button.setAttribute("aria-pressed", String(answered));
    drawn = chart(one, x, guess, options, answered, width < 80 ? 600 : width);
    plot.replaceChildren(drawn.svg);
    const [kind, text] = words(one, x, guess, options, answered, drawn.values, drawn.share);
    said.className = `words ${kind}`;
    said.textContent = text;
    const key = (name, meaning) => h("span", {}, h("i", { class: `key ${name}` }), meaning);
    legend.replaceChildren(key("dot", "what you see"), key("band", "all that is possible"), key("sure", "a side is sure"),
      ...(answered ? [key("low", "one function"), key("high", "the other")] : []));
    Object.assign(root.dataset, { low: drawn.values[0], high: drawn.values[1], bounds: bounds(one, x, options).join(",") });
  }
  const move = (event) => {
    const [x, guess] = drawn.place(event, drawn.svg);
    save({ x: Math.round(100 * clamp(x)) / 100, guess: Math.round(100 * clamp(guess)) / 100 });
  };
  plot.addEventListener("pointerdown", (event) => {
    dragging = true;
    plot.setPointerCapture(event.pointerId);
    move(event);
  });
  plot.addEventListener("pointermove", (event) => dragging && move(event));
  for (const end of ["pointerup", "pointercancel"]) plot.addEventListener(end, () => (dragging = false));

  let last = 0;
  const observer = new ResizeObserver(() => {
    const width = Math.round(plot.clientWidth);
    if (width !== last) paint();
    last = width;
  });
  observer.observe(plot);
  const names = ["kind", "x", "guess", "slope", "width", "answered"];
  for (const name of names) model.on(`change:${name}`, paint);
  paint();
  return () => {
    observer.disconnect();
    for (const name of names) model.off(`change:${name}`, paint);
  };
}

export default { render };
